"""Evaluation as a stage: models/… (against models/…) + held-out data → evaluations/…"""

import json

from cluster.artifacts.files import write_atomic
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.models.load import load_config
from llm.tokenizer.load import load_tokenizer
from pipelines.begin import begin
from pipelines.evaluate.config import EvaluateConfig
from pipelines.model_folder import TOKENIZER
from pipelines.progress import stage_progress
from pipelines.prompts import check_conversations, load_prompts
from pipelines.sampling import check_context

LOGIC_VERSION = 1


def resolve_inputs(config: EvaluateConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """Models, conversations and tokens. Raises UserError if one is missing or they do not fit together."""
    inputs = {
        "model": store.resolve("models", config.model),
        "corpus": store.resolve("corpora", config.corpus),
    }
    check_conversations(inputs["corpus"])
    if config.baseline is not None:
        inputs["baseline"] = store.resolve("models", config.baseline)
    for role in ("model", "baseline"):
        if role in inputs:
            check_context(inputs[role], config.max_prompt_tokens + config.max_tokens)
            if load_config(inputs[role].path)[1] != "lm":
                raise UserError(f"--{role} {inputs[role].ref} is no language model")
    tokenizers = {role: (inputs[role].path / TOKENIZER).read_bytes() for role in inputs if role != "corpus"}
    if config.tokens is not None:
        inputs["tokens"] = store.resolve("tokens", config.tokens)
        tokenizer = store.resolve("tokenizers", inputs["tokens"].manifest["inputs"]["tokenizer"]["ref"])
        tokenizers["tokens"] = (tokenizer.path / TOKENIZER).read_bytes()
    for role, content in tokenizers.items():
        if content != tokenizers["model"]:
            raise UserError(f"{inputs[role].ref} has another tokenizer than {inputs['model'].ref}")
    return inputs


def run(config: EvaluateConfig, cluster: Cluster) -> Artifact:
    """Make evaluations/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    draft = begin(config, inputs, kind="evaluations", stage="evaluate", logic_version=LOGIC_VERSION)
    if isinstance(draft, Artifact):
        return draft
    prompts = load_prompts(
        inputs["corpus"].path,
        load_tokenizer(inputs["model"].path),
        split="heldout",
        seed=config.seed,
        limit=config.prompts,
        max_tokens=config.max_prompt_tokens,
    )
    if not prompts:
        raise UserError(
            f"{inputs['corpus'].ref} has no held-out prompt of {config.max_prompt_tokens} tokens or less"
        )

    # torch and Ray take seconds to import, and there was nothing to do until here.
    import ray

    from pipelines.evaluate.answers import Answer, answers_of
    from pipelines.evaluate.heldout_text import heldout_bits_per_byte
    from pipelines.evaluate.results import side_by_side, summarise

    roles = [role for role in ("model", "baseline") if role in inputs]
    answers: dict[str, list[Answer]] = {}
    bits: dict[str, float] = {}
    with stage_progress("evaluate", len(roles), "model") as progress:
        for done, role in enumerate(roles, start=1):
            path = inputs[role].path
            answers[role] = answers_of(path, prompts, config, cluster)
            if "tokens" in inputs:
                scoring = heldout_bits_per_byte.options(
                    num_cpus=cluster.share(1, use_gpus=False).cpus
                ).remote(path, inputs["tokens"].path, config.windows, config.threads)
                bits[role] = ray.get(scoring)
            progress.update(done)
    results = {
        "models": {role: inputs[role].ref for role in roles},
        "prompts": len(prompts),
        "bits_per_byte": bits.get("model"),
        "baseline_bits_per_byte": bits.get("baseline"),
        **summarise(answers),
    }
    lines = [json.dumps(record) + "\n" for record in side_by_side(prompts, answers)]
    write_atomic(draft.path / "samples.jsonl", "".join(lines).encode())
    write_atomic(draft.path / "results.json", json.dumps(results, indent=2).encode() + b"\n")
    return draft.commit(counts=results)
