"""Preferences: sample K responses to each prompt, rank them, write one table.

Batches of `BATCH_PROMPTS` prompts go to engine actors, which are large and few where the unit runner has a
worker a CPU. A finished batch is a file and a line in the ledger, so a run that was killed samples only
what is missing. Every response has its own seed: batches, engines and restarts do not change what comes out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from cluster.errors import UserError
from llm.engine.request import Completion, Request
from llm.text.identity import is_heldout
from llm.tokenizer.tokenizer import Tokenizer
from pipelines.begin import begin
from pipelines.check_model import check_context, check_language_model
from pipelines.preferences.config import PreferencesConfig
from pipelines.preferences.table import TABLE, write_rows
from pipelines.progress import stage_progress
from pipelines.prompt_meter import PromptMeter
from pipelines.prompts import Prompt, Split, check_conversations, load_prompts, sample_seed
from pipelines.sampling import chat_request
from pipelines.simulated_reviewer import rank_responses
from pipelines.tokenizer_artifact import load_tokenizer

LOGIC_VERSION = 3
BATCH_PROMPTS = 64
BATCHES = "batches"
"""Folder of the draft: rows of each batch until all are there."""


@dataclass(frozen=True)
class PromptBatch:
    """Some prompts and all requests for them; its id names both the ledger's record and the file."""

    id: str
    prompts: list[Prompt]
    requests: list[Request]


def resolve_inputs(config: PreferencesConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The model and the conversations. Raises UserError if one is missing or of the wrong kind."""
    corpus = store.resolve("corpora", config.corpus)
    check_conversations(corpus)
    model = store.resolve("models", config.model)
    check_language_model("model", model)
    check_context(model, config.max_prompt_tokens + config.max_tokens)
    return {"model": model, "corpus": corpus}


def run(config: PreferencesConfig, cluster: Cluster) -> Artifact:
    """Make preferences/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    started = begin(config, inputs, kind="preferences", stage="preferences", logic_version=LOGIC_VERSION)
    if isinstance(started, Artifact):
        return started
    draft = started

    tokenizer = load_tokenizer(inputs["model"])
    batches = plan_batches(config, inputs["corpus"], tokenizer)
    done = draft.ledger.done()
    missing = [batch for batch in batches if batch.id not in done]
    sample_and_rank(config, cluster, draft, inputs["model"], tokenizer, missing, len(batches))
    finished = draft.folder / BATCHES
    rows: list[dict[str, Any]] = []
    for batch in batches:
        with finished.open(f"{batch.id}.parquet") as source:
            rows += pq.read_table(source).to_pylist()
    with draft.writing() as writing:
        write_rows(writing.path / TABLE, rows)
    artifact = draft.commit(counts=count(rows))
    draft.discard_work(BATCHES)
    return artifact


def plan_batches(config: PreferencesConfig, corpus: Artifact, tokenizer: Tokenizer) -> list[PromptBatch]:
    """The prompts in their order, cut into batches."""
    prompts = load_prompts(
        corpus,
        tokenizer,
        split="train",
        seed=config.seed,
        limit=config.prompts,
        max_tokens=config.max_prompt_tokens,
    )
    check_split(config, prompts)
    batches = []
    for start in range(0, len(prompts), BATCH_PROMPTS):
        some = prompts[start : start + BATCH_PROMPTS]
        requests = [
            chat_request(
                prompt,
                sample,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=config.seed,
            )
            for prompt in some
            for sample in range(config.responses)
        ]
        batches.append(
            PromptBatch(hashlib.sha256(repr([p.id for p in some]).encode()).hexdigest()[:16], some, requests)
        )
    return batches


def split_of(config: PreferencesConfig, prompt: Prompt) -> Split:
    """On which side of the reward model's test the prompt's ranking is: where all of its group are."""
    # Under a key of its own: the corpus has held out the groups whose bare hash is small.
    key = f"preferences/{prompt.group}"
    return "heldout" if is_heldout(key, config.seed, config.heldout_fraction) else "train"


def check_split(config: PreferencesConfig, prompts: Sequence[Prompt]) -> None:
    """Raise UserError if no ranking would be left to learn from, or none to test on."""
    splits = {split_of(config, prompt) for prompt in prompts}
    if len(splits) < 2:
        groups = len({prompt.group for prompt in prompts})
        raise UserError(
            f"--heldout-fraction {config.heldout_fraction}: all {len(prompts)} prompts, of {groups} groups, "
            f"would be {splits.pop()}; raise --prompts, or choose another fraction or --seed"
        )


def sample_and_rank(
    config: PreferencesConfig,
    cluster: Cluster,
    draft: Draft,
    model: Artifact,
    tokenizer: Tokenizer,
    batches: list[PromptBatch],
    total: int,
) -> None:
    """Run `batches` on the engines, rank each one's responses as it comes back, and commit it."""
    from pipelines.actors.engine_pool import EnginePool

    if not batches:
        return
    count = min(config.engines, len(batches))
    with (
        EnginePool(
            count,
            model,
            share=cluster.share(count),
            max_batch=config.max_batch,
            max_seq_len=config.max_prompt_tokens + config.max_tokens,
            threads=config.threads,
        ) as engines,
        stage_progress("preferences", total, unit="batch") as progress,
        closing(PromptMeter("preferences", draft, sum(len(batch.prompts) for batch in batches))) as meter,
    ):
        done = total - len(batches)
        progress.update(done)
        for index, completions in engines.generate([batch.requests for batch in batches]):
            batch = batches[index]
            rows = rank_batch(config, batch, completions, tokenizer)
            with (draft.folder / BATCHES).writing() as writing:
                write_rows(writing.path / f"{batch.id}.parquet", rows)
            draft.ledger.commit(batch.id, {"prompts": len(rows), "files": writing.files_below(BATCHES)})
            done += 1
            meter.answered(len(batch.prompts), sum(len(each.response_ids) for each in completions))
            progress.update(done, **meter.rate())
        draft.note(prompts=meter.summary())


def rank_batch(
    config: PreferencesConfig, batch: PromptBatch, completions: list[Completion], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Rows of the table for one batch."""
    rows = []
    for index, prompt in enumerate(batch.prompts):
        own = completions[index * config.responses : (index + 1) * config.responses]
        texts = [tokenizer.decode(each.response_ids) for each in own]
        ranks = rank_responses(
            prompt.text,
            [(text, each.finish_reason == "stop") for text, each in zip(texts, own, strict=True)],
            config.noise,
            sample_seed(config.seed, prompt.id, -1),
        )
        rows.append(
            {
                "prompt_id": prompt.id,
                "group": prompt.group,
                "prompt": prompt.messages,
                "prompt_ids": prompt.token_ids,
                "responses": [
                    {"text": text, "token_ids": each.response_ids, "finish_reason": each.finish_reason}
                    for text, each in zip(texts, own, strict=True)
                ],
                "ranks": ranks,
                "reviewer": config.reviewer,
                "split": split_of(config, prompt),
            }
        )
    return rows


def count(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is in the table, for the manifest."""
    pairs = [
        (first, second)
        for row in rows
        for place, first in enumerate(row["ranks"])
        for second in row["ranks"][place + 1 :]
    ]
    reasons = Counter(response["finish_reason"] for row in rows for response in row["responses"])
    return {
        "rankings": len(rows),
        "train_rankings": sum(row["split"] == "train" for row in rows),
        "heldout_rankings": sum(row["split"] == "heldout" for row in rows),
        "pairs": len(pairs),
        "tied_pairs": sum(first == second for first, second in pairs),
        "cut_responses": reasons["length"],
        "reviewers": sorted({row["reviewer"] for row in rows}),
    }
