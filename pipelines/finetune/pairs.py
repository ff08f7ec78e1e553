"""From a conversation corpus to what an encoder-decoder learns: what it reads, and what it writes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.errors import UserError
from llm.data.pairs import Pair, PairBatches, PairRows, lay_out
from llm.tokenizer.pairs import encode_pair
from llm.tokenizer.tokenizer import Tokenizer
from llm.training.step import MicroBatch
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import read_messages


def read_pairs(corpus: Path, split: str, tokenizer: Tokenizer) -> list[Pair]:
    """Every conversation of a split, in the corpus's order; one without an answer has nothing to write."""
    return [encode_pair(tokenizer, messages) for messages in read_messages(corpus, split)]


def training_pairs(config: FinetuneConfig, corpus: Path, tokenizer: Tokenizer) -> PairBatches:
    """The batches of the training split; raises UserError if it does not fill one."""
    try:
        return PairBatches(
            read_pairs(corpus, "train", tokenizer),
            batch_size=config.global_batch,
            max_input_len=config.max_seq_len,
            max_target_len=config.longest_target,
            packing=config.packing,
            seed=config.seed,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
        )
    except ValueError as error:
        raise UserError(f"{corpus}: {error}") from None


def heldout_pairs(config: FinetuneConfig, corpus: Path, tokenizer: Tokenizer) -> tuple[list[Pair], int]:
    """Held-out pairs that fit and have an answer, and how many are too long; raises UserError if none is
    left.
    """
    answered = [pair for pair in read_pairs(corpus, "heldout", tokenizer) if pair[1]]
    limits = config.max_seq_len, config.longest_target
    fitting = [pair for pair in answered if len(pair[0]) <= limits[0] and len(pair[1]) <= limits[1]]
    if not fitting:
        raise UserError(
            f"none of the {len(answered)} held-out conversations in {corpus} that have an answer fits "
            f"--max-seq-len {limits[0]} and --max-target-len {limits[1]}: raise them or hold out more"
        )
    return fitting, len(answered) - len(fitting)


def padded_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer) -> MicroBatch:
    """One pair a row, padded to the longest."""
    return as_tensors(lay_out([[pair] for pair in pairs], tokenizer.pad_id, tokenizer.eos_id))


def as_tensors(rows: PairRows) -> MicroBatch:
    """(inputs, tokens, targets)."""
    inputs, tokens, targets = map(torch.from_numpy, (rows.inputs, rows.tokens, rows.targets))
    return inputs, tokens, targets
