"""What a model is fine-tuned with, whatever its family: batches to learn from, and what is held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm.data.best_fit import PackedConversationBatches
from llm.data.packing import ConversationBatches
from llm.data.pairs import PairBatches
from llm.models.config import Family, ModelConfig
from llm.planning.flops import training_flops_per_token
from llm.tokenizer.tokenizer import Tokenizer
from llm.training.loss import next_token_targets
from llm.training.step import MicroBatch
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import heldout_examples, right_padded, training_batches
from pipelines.finetune.pairs import as_tensors, heldout_pairs, padded_pairs, training_pairs

Batches = ConversationBatches | PackedConversationBatches | PairBatches


@dataclass(frozen=True)
class Lessons:
    """Everything about the data that a worker needs to know."""

    batches: Batches
    batch: Callable[[int, int, int], MicroBatch]
    """(step, rank, world size) -> the rows of that rank."""
    heldout: Sequence[Any]
    """Examples, each of which fits."""
    too_long_heldout: int
    padded: Callable[[Sequence[Any]], MicroBatch]
    """Some of them, one a row."""
    opening_ids: tuple[int | None, int | None]
    """As of `language_model_loss`: of batches, and of padded rows."""
    flops_per_token: float
    """To learn one token: of an encoder-decoder, one of an answer, which bears its share of the encoder."""


def read_batches(config: FinetuneConfig, family: Family, corpus: Path, tokenizer: Tokenizer) -> Batches:
    """The batches of the training split; raises UserError if it does not fill one."""
    read = training_pairs if family == "encoder-decoder" else training_batches
    return read(config, corpus, tokenizer)


def read_lessons(config: FinetuneConfig, model: ModelConfig, corpus: Path, tokenizer: Tokenizer) -> Lessons:
    """All of a corpus; raises UserError if one of its splits has too little."""
    batches = read_batches(config, model.family, corpus, tokenizer)
    if isinstance(batches, PairBatches):
        pairs, too_long = heldout_pairs(config, corpus, tokenizer)
        read, written = map(round, batches.mean_lengths)
        return Lessons(
            batches,
            lambda step, rank, world: as_tensors(batches.batch(step, rank, world)),
            pairs,
            too_long,
            lambda some: padded_pairs(some, tokenizer),
            (tokenizer.pad_id, tokenizer.pad_id),
            training_flops_per_token(model, written, read),
        )

    def rows_of(step: int, rank: int, world: int) -> MicroBatch:
        rows = batches.batch(step, rank, world)
        tokens = torch.from_numpy(rows.ids)
        return tokens, next_token_targets(tokens, torch.from_numpy(rows.loss_mask))

    examples, too_long = heldout_examples(config, corpus, tokenizer)
    return Lessons(
        batches,
        rows_of,
        examples,
        too_long,
        lambda some: right_padded(some, tokenizer.pad_id),
        (tokenizer.bos_id if config.packing else None, None),
        training_flops_per_token(model, config.max_seq_len),
    )
