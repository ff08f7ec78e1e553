"""From a conversation corpus to what the training loop eats: token ids, and which of them are learned."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset
import torch

from cluster.errors import UserError
from llm.data.best_fit import PackedConversationBatches
from llm.data.packing import ConversationBatches
from llm.tokenizer.chat import encode_conversation
from llm.tokenizer.tokenizer import Tokenizer
from llm.training.loss import next_token_targets
from llm.training.step import MicroBatch
from pipelines.finetune.config import FinetuneConfig

Example = tuple[list[int], list[int]]
"""Token ids, and for each 1 if it is learned: the assistant's words and the end of its turn."""


def read_messages(corpus: Path, split: str) -> list[list[dict[str, str]]]:
    """Every conversation of a split, in the corpus's order."""
    parts = sorted(str(part) for part in corpus.glob("part-*.parquet"))
    table = pyarrow.dataset.dataset(parts).to_table(
        columns=["messages"], filter=pyarrow.dataset.field("split") == split
    )
    return table["messages"].to_pylist()


def read_examples(corpus: Path, split: str, tokenizer: Tokenizer) -> list[Example]:
    """The same, as a decoder learns them."""
    return [encode_conversation(tokenizer, messages) for messages in read_messages(corpus, split)]


def training_batches(
    config: FinetuneConfig, corpus: Path, tokenizer: Tokenizer
) -> ConversationBatches | PackedConversationBatches:
    """The batches of the training split; raises UserError if it does not fill one."""
    try:
        return (PackedConversationBatches if config.packing else ConversationBatches)(
            read_examples(corpus, "train", tokenizer),
            batch_size=config.global_batch,
            max_seq_len=config.max_seq_len,
            seed=config.seed,
            pad_id=tokenizer.pad_id,
        )
    except ValueError as error:
        raise UserError(f"{corpus}: {error}") from None


def heldout_examples(config: FinetuneConfig, corpus: Path, tokenizer: Tokenizer) -> tuple[list[Example], int]:
    """Held-out conversations that fit and have a reply, and how many are too long; raises UserError if none
    is left.
    """
    examples = read_examples(corpus, "heldout", tokenizer)
    too_long = sum(len(ids) > config.max_seq_len for ids, _ in examples)
    fitting = [(ids, learned) for ids, learned in examples if len(ids) <= config.max_seq_len and any(learned)]
    if not fitting:
        raise UserError(
            f"none of the {len(examples)} held-out conversations in {corpus} has a reply and at most "
            f"--max-seq-len {config.max_seq_len} tokens: raise it or hold out more"
        )
    return fitting, too_long


def right_padded(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    """Tokens and targets (len(examples), longest); padding and what is not learned is not predicted."""
    longest = max(len(ids) for ids, _ in examples)
    tokens = np.full((len(examples), longest), pad_id, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=bool)
    for row, (ids, learned) in enumerate(examples):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, learned
    whole = torch.from_numpy(tokens)
    return whole, next_token_targets(whole, torch.from_numpy(mask))
