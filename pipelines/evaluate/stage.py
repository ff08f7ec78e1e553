"""Evaluation as a stage: models/… (against models/…) + held-out data → evaluations/…"""

import json
from contextlib import closing
from typing import Any

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from cluster.one_process import run_in_one_process
from llm.tokenizer.chat import encode_prompt
from llm.tokenizer.pairs import encode_source
from pipelines.begin import begin
from pipelines.check_model import check_context, check_language_model, family_of
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.pre_training import check_question, pre_training, question_for
from pipelines.progress import stage_progress
from pipelines.prompt_meter import PromptMeter
from pipelines.prompts import Prompt, check_conversations, load_prompts
from pipelines.tokenizer_artifact import load_tokenizer, read_tokenizer, resolve_tokenizer

LOGIC_VERSION = 3


def resolve_inputs(config: EvaluateConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """Models, conversations and tokens. Raises UserError if one is missing or they do not fit together."""
    if config.corpus is None and config.tokens is None:
        raise UserError(
            "nothing to measure: --tokens NAME gives bits per byte of text, --corpus NAME prompts to answer"
        )
    models = {"model": store.resolve("models", config.model)}
    if config.baseline is not None:
        models["baseline"] = store.resolve("models", config.baseline)
    for role, model in models.items():
        check_language_model(role, model, ("decoder", "encoder-decoder", "encoder"))
    _check_families(config, models)
    inputs = dict(models)
    if config.corpus is not None:
        inputs["corpus"] = store.resolve("corpora", config.corpus)
        check_conversations(inputs["corpus"])
        for model in models.values():
            if family_of(model) == "encoder-decoder":
                check_context(model, config.max_prompt_tokens, "max_prompt_tokens")
                check_context(model, config.max_tokens, "max_tokens")
            else:
                check_context(model, config.max_prompt_tokens + config.max_tokens)
    tokenizers = {role: read_tokenizer(model) for role, model in models.items()}
    if config.tokens is not None:
        inputs["tokens"] = store.resolve("tokens", config.tokens)
        if inputs["tokens"].counts.get("heldout_tokens") == 0:
            raise UserError(
                f"--tokens {config.tokens}: {inputs['tokens'].ref} has no held-out text; "
                "make its corpus with a --heldout-fraction above 0"
            )
        tokenizer = resolve_tokenizer(store, inputs["tokens"].manifest["inputs"]["tokenizer"]["ref"])
        tokenizers["tokens"] = read_tokenizer(tokenizer)
    for role, content in tokenizers.items():
        if content != tokenizers["model"]:
            raise UserError(f"{inputs[role].ref} has another tokenizer than {inputs['model'].ref}")
    if "tokens" in inputs and family_of(models["model"]) != "decoder":
        check_question(question_for(store, models["model"]), models, inputs["tokens"])
    return inputs


def _check_families(config: EvaluateConfig, models: dict[str, Artifact]) -> None:
    """Raise UserError if the models are measured in different ways, or cannot be measured as is asked."""
    model, *others = models.values()
    for other in others:
        if family_of(other) != family_of(model):
            raise UserError(
                f"--baseline {other.ref} is a {family_of(other)}, and {model.ref} a {family_of(model)}: they "
                "are measured in different ways; name a baseline of the same family"
            )
    if config.corpus is not None and family_of(model) == "encoder":
        raise UserError(
            f"--corpus {config.corpus}: {model.ref} is an encoder, which writes no answers; --tokens NAME "
            "measures how well it guesses held-out text"
        )


def run(config: EvaluateConfig, cluster: Cluster) -> Artifact:
    """Make evaluations/NAME."""
    store = ArtifactStore(config.root)
    inputs = resolve_inputs(config, store)
    draft = begin(config, inputs, kind="evaluations", stage="evaluate", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    prompts = load_heldout_prompts(config, inputs) if "corpus" in inputs else []
    roles = [role for role in ("model", "baseline") if role in inputs]
    # torch and Ray take seconds to import, and there was nothing to do until here.
    if family_of(inputs["model"]) != "decoder":
        from pipelines.evaluate.heldout_text import measure_guesses
        from pipelines.evaluate.pairs import measure_pairs

        measured: dict[str, Any] = {"models": {role: inputs[role].ref for role in roles}}
        if "tokens" in inputs:
            question = question_for(store, inputs["model"])
            measured |= measure_guesses(config, inputs, question, cluster)
        if prompts:
            measured |= {"prompts": len(prompts), **measure_pairs(config, inputs, prompts, draft, cluster)}
        return _commit(draft, measured)

    from pipelines.evaluate.answers import Answer, answers_of
    from pipelines.evaluate.heldout_text import heldout_bits_per_byte
    from pipelines.evaluate.results import side_by_side, summarise

    answers: dict[str, list[Answer]] = {}
    bits: dict[str, float] = {}
    to_answer = len(roles) * len(prompts)
    cluster.connect()
    with (
        stage_progress("evaluate", to_answer or len(roles), "prompt" if prompts else "model") as progress,
        closing(PromptMeter("evaluate", draft, to_answer)) as meter,
    ):
        progress.update(0)

        def answered(some: int, tokens: int) -> None:
            meter.answered(some, tokens)
            progress.update(meter.count, **meter.rate())

        for done, role in enumerate(roles, start=1):
            if prompts:
                answers[role] = answers_of(inputs[role], prompts, config, cluster, answered)
            if "tokens" in inputs:
                cpus = cluster.share(1, use_gpus=False).cpus
                bits[role] = run_in_one_process(
                    heldout_bits_per_byte,
                    inputs[role],
                    inputs["tokens"],
                    config.windows,
                    config.threads or max(1, int(cpus)),
                    pre_training(store, inputs[role]).get("document_mask", False),
                    cpus=cpus,
                    what=f"{config.name}: bits per byte of {inputs[role].ref}",
                    less_memory="run on a node with more memory",
                )
            if not prompts:
                progress.update(done)
        if prompts:
            draft.note(prompts=meter.summary())
    results: dict[str, Any] = {
        "models": {role: inputs[role].ref for role in roles},
        "bits_per_byte": bits.get("model"),
        "baseline_bits_per_byte": bits.get("baseline"),
    }
    if answers:
        results |= {"prompts": len(prompts), **summarise(answers)}
        lines = [json.dumps(record) + "\n" for record in side_by_side(prompts, answers)]
        draft.write("samples.jsonl", "".join(lines).encode())
    return _commit(draft, results)


def _commit(draft: Draft, results: dict[str, Any]) -> Artifact:
    draft.write("results.json", json.dumps(results, indent=2).encode() + b"\n")
    return draft.commit(counts=results)


def load_heldout_prompts(config: EvaluateConfig, inputs: dict[str, Artifact]) -> list[Prompt]:
    """The prompts that all models answer, for encoder-decoders those that have an answer to compare with.
    Raises UserError if there is none.
    """
    pairs = family_of(inputs["model"]) == "encoder-decoder"
    return load_prompts(
        inputs["corpus"],
        load_tokenizer(inputs["model"]),
        split="heldout",
        seed=config.seed,
        limit=config.prompts,
        max_tokens=config.max_prompt_tokens,
        encode=encode_source if pairs else encode_prompt,
        answered=pairs,
    )
