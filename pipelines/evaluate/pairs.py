"""What an encoder-decoder answers to held-out questions, against the answers of the corpus."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from statistics import mean
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.connect import Cluster
from cluster.one_process import run_in_one_process
from llm.engine.encoder_decoder import answer_all
from llm.evaluation.text_match import TextMatch, text_match
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.load import load_model
from llm.tokenizer.special import EOS_ID, PAD_ID
from pipelines.corpus_pieces import part_files
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.results import share
from pipelines.progress import stage_progress
from pipelines.prompt_meter import PromptMeter
from pipelines.prompts import Prompt
from pipelines.tokenizer_artifact import load_tokenizer


def measure_pairs(
    config: EvaluateConfig,
    inputs: dict[str, Artifact],
    prompts: Sequence[Prompt],
    draft: Draft,
    cluster: Cluster,
) -> dict[str, Any]:
    """Let each model answer, greedily; write samples.jsonl; returns what results.json says.

    Two answers that take no model stand beside theirs: the question itself, and the commonest answer of the
    training split.
    """
    tokenizer = load_tokenizer(inputs["model"])
    roles = [role for role in ("model", "baseline") if role in inputs]
    answers: dict[str, list[list[int]]] = {}
    cluster.connect()
    to_answer = len(roles) * len(prompts)
    with (
        stage_progress("evaluate", to_answer, "prompt") as progress,
        closing(PromptMeter("evaluate", draft, to_answer)) as meter,
    ):
        progress.update(0)
        cpus = cluster.share(1, use_gpus=False).cpus
        for role in roles:
            answers[role] = run_in_one_process(
                _answers,
                inputs[role],
                [prompt.token_ids for prompt in prompts],
                config.max_tokens,
                config.max_batch,
                config.threads or max(1, int(cpus)),
                cpus=cpus,
                what=f"{config.name}: answers of {inputs[role].ref}",
                less_memory="lower --max-batch, or run on a node with more memory",
            )
            meter.answered(len(prompts), sum(map(len, answers[role])))
            progress.update(meter.count, **meter.rate())
        draft.note(prompts=meter.summary())

    references = [prompt.reference for prompt in prompts]
    texts = {role: [tokenizer.decode(ids) for ids in own] for role, own in answers.items()}
    found = {role: text_match(own, references, config.bleu_tokenizer) for role, own in texts.items()}
    trivial = {
        "question": [prompt.text for prompt in prompts],
        "commonest_answer": [_commonest_answer(inputs["corpus"])] * len(prompts),
    }
    lines = [
        json.dumps(
            {
                "prompt_id": prompt.id,
                "prompt": prompt.text,
                "reference": prompt.reference,
                **{role: own[index] for role, own in texts.items()},
            }
        )
        for index, prompt in enumerate(prompts)
    ]
    draft.write("samples.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return {
        "exact_match": {role: each.exact.to_json() for role, each in found.items()},
        "bleu": {role: each.bleu for role, each in found.items()},
        "bleu_signature": found["model"].signature,
        "trivial": {
            name: _numbers(text_match(own, references, config.bleu_tokenizer))
            for name, own in trivial.items()
        },
        "finish_rate": {
            role: share(len(ids) < config.max_tokens for ids in own) for role, own in answers.items()
        },
        "mean_tokens": {role: mean(map(len, own)) for role, own in answers.items()},
    }


def _numbers(found: TextMatch) -> dict[str, float]:
    return {"exact_match": found.exact.value, "bleu": found.bleu}


def _answers(
    model: Artifact, sources: list[list[int]], max_tokens: int, batch_size: int, threads: int
) -> list[list[int]]:
    torch.set_num_threads(threads)
    writer, _ = load_model(model.fetch())
    assert isinstance(writer, EncoderDecoder)
    return answer_all(
        writer,
        sources,
        batch_size=batch_size,
        start_id=PAD_ID,
        pad_id=PAD_ID,
        stop_id=EOS_ID,
        max_tokens=max_tokens,
    )


def _commonest_answer(corpus: Artifact) -> str:
    """Of the training split; the first of those that are equally common, "" if there is none."""
    folder = corpus.fetch(*part_files(corpus))
    table = pq.read_table([folder / name for name in part_files(corpus)], columns=["messages", "split"])
    learned = table.filter(pc.equal(table["split"], "train"))["messages"].to_pylist()
    said = Counter(messages[-1]["content"] for messages in learned if messages[-1]["role"] == "assistant")
    return said.most_common(1)[0][0] if said else ""
