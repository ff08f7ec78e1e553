"""Preferences: sample K responses to each prompt, rank them, write one table.

Work units of `UNIT_PROMPTS` prompts go to engine actors; a finished unit is a file and a line in the ledger,
so a run that was killed samples only what is missing. Every response has its own seed: units, engines and
restarts do not change what comes out.
"""

import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.connect import Cluster
from llm.engine.request import Completion, Request
from llm.tokenizer.load import Tokenizer, load_tokenizer
from pipelines.begin import begin
from pipelines.preferences.config import PreferencesConfig
from pipelines.preferences.table import write_rows
from pipelines.progress import stage_progress
from pipelines.prompts import Prompt, check_conversations, is_heldout, load_prompts, sample_seed
from pipelines.sampling import chat_request, check_context
from pipelines.simulated_reviewer import rank_responses

LOGIC_VERSION = 1
UNIT_PROMPTS = 64


@dataclass(frozen=True)
class Unit:
    """Some prompts and all requests for them; its id names both the ledger's record and the file."""

    id: str
    prompts: list[Prompt]
    requests: list[Request]


def resolve_inputs(config: PreferencesConfig, store: ArtifactStore) -> dict[str, Artifact]:
    """The model and the conversations. Raises UserError if one is missing or of the wrong kind."""
    corpus = store.resolve("corpora", config.corpus)
    check_conversations(corpus)
    model = store.resolve("models", config.model)
    check_context(model, config.max_prompt_tokens + config.max_tokens)
    return {"model": model, "corpus": corpus}


def run(config: PreferencesConfig, cluster: Cluster) -> Artifact:
    """Make preferences/NAME."""
    inputs = resolve_inputs(config, ArtifactStore(config.root))
    started = begin(config, inputs, kind="preferences", stage="preferences", logic_version=LOGIC_VERSION)
    if isinstance(started, Artifact):
        return started
    draft = started

    tokenizer = load_tokenizer(inputs["model"].path)
    units = plan_units(config, inputs["corpus"].path, tokenizer)
    missing = [unit for unit in units if not is_done(draft, unit)]
    sample_and_rank(config, cluster, draft, inputs["model"].path, tokenizer, missing, len(units))
    rows = [row for unit in units for row in pq.read_table(unit_file(draft, unit)).to_pylist()]
    write_rows(draft.path / "preferences.parquet", rows)
    shutil.rmtree(draft.path / "units")
    return draft.commit(counts=count(rows))


def plan_units(config: PreferencesConfig, corpus: Path, tokenizer: Tokenizer) -> list[Unit]:
    """The prompts in their order, cut into units."""
    prompts = load_prompts(
        corpus,
        tokenizer,
        split="train",
        seed=config.seed,
        limit=config.prompts,
        max_tokens=config.max_prompt_tokens,
    )
    units = []
    for start in range(0, len(prompts), UNIT_PROMPTS):
        some = prompts[start : start + UNIT_PROMPTS]
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
        units.append(
            Unit(hashlib.sha256(repr([p.id for p in some]).encode()).hexdigest()[:16], some, requests)
        )
    return units


def is_done(draft: Draft, unit: Unit) -> bool:
    """Whether the unit was finished by this run or one before it."""
    return unit.id in draft.ledger.done() and unit_file(draft, unit).exists()


def unit_file(draft: Draft, unit: Unit) -> Path:
    """Rows of one unit until all are there."""
    return draft.path / "units" / f"{unit.id}.parquet"


def sample_and_rank(
    config: PreferencesConfig,
    cluster: Cluster,
    draft: Draft,
    model: Path,
    tokenizer: Tokenizer,
    units: list[Unit],
    total: int,
) -> None:
    """Run `units` on the engines, rank each unit's responses as it comes back, and commit it."""
    from pipelines.actors.engine_pool import EnginePool

    if not units:
        return
    count = min(config.engines, len(units))
    with (
        EnginePool(
            count,
            model,
            share=cluster.share(count),
            max_batch=config.max_batch,
            max_seq_len=config.max_prompt_tokens + config.max_tokens,
            threads=config.threads,
        ) as engines,
        stage_progress("preferences", total, unit="unit") as progress,
    ):
        done = total - len(units)
        for index, completions in engines.generate([unit.requests for unit in units]):
            unit = units[index]
            rows = rank_unit(config, unit, completions, tokenizer)
            write_rows(unit_file(draft, unit), rows)
            draft.ledger.commit(unit.id, {"prompts": len(rows)})
            done += 1
            progress.update(done, responses=done * UNIT_PROMPTS * config.responses)


def rank_unit(
    config: PreferencesConfig, unit: Unit, completions: list[Completion], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Rows of the table for one unit."""
    rows = []
    for index, prompt in enumerate(unit.prompts):
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
                "split": "heldout"
                if is_heldout(config.seed, prompt.id, config.heldout_fraction)
                else "train",
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
