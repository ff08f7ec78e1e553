"""Which tokens are learned, against a walk through the chat template written here."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from cluster.errors import UserError
from llm.tokenizer.load import Tokenizer
from llm.tokenizer.special import ASSISTANT_ID, BOS_ID, END_ID, PAD_ID, USER_ID
from llm.tokenizer.train import train_tokenizer
from llm.training.loss import IGNORE, next_token_targets
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import heldout_examples, right_padded, training_batches

TEXTS = ["hello there", "how are you", "fine", "def f(x):\n    return x", "a much longer answer than before"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train_tokenizer(TEXTS * 20, vocab_size=300))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(12):
        texts = [TEXTS[(i + j) % len(TEXTS)] for j in range(4)]
        roles = ["user", "assistant"] * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)][: 2 + 2 * (i % 2)]
        rows.append({"messages": messages, "split": "heldout" if i >= 9 else "train"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part-00000.parquet")
    return folder


def expected_targets(tokenizer, messages):
    """(ids, target of each position): a position is learned if what follows is in an assistant's turn."""
    ids, learned = [BOS_ID], [False]
    for message in messages:
        is_reply = message["role"] == "assistant"
        ids.append(ASSISTANT_ID if is_reply else USER_ID)
        learned.append(False)
        for token in [*tokenizer.encode(message["content"]), END_ID]:
            ids.append(token)
            learned.append(is_reply)
    targets = [ids[t + 1] if t + 1 < len(ids) and learned[t + 1] else IGNORE for t in range(len(ids))]
    return ids, targets


def test_only_replies_and_their_ends_are_learned(tokenizer, corpus):
    table = pyarrow.parquet.read_table(corpus / "part-00000.parquet").to_pylist()
    expected = {tuple(i): t for i, t in (expected_targets(tokenizer, row["messages"]) for row in table)}
    config = FinetuneConfig(global_batch=3, max_seq_len=250)
    batches = training_batches(config, corpus, tokenizer)
    assert len(batches) == 9
    seen = 0
    for step in range(batches.batches_per_epoch):
        batch = batches.batch(step)
        targets = next_token_targets(torch.from_numpy(batch.ids), torch.from_numpy(batch.loss_mask))
        seen += check_rows(batch.ids, targets.numpy(), expected)
    assert seen == 9
    tokens, targets = right_padded(heldout_examples(config, corpus, tokenizer), PAD_ID)
    assert check_rows(tokens.numpy(), targets.numpy(), expected) == 3


def check_rows(ids: np.ndarray, targets: np.ndarray, expected) -> int:
    for row, row_targets in zip(ids, targets, strict=True):
        length = int((row != PAD_ID).sum())
        assert row_targets[:length].tolist() == expected[tuple(row[:length].tolist())]
        assert (row_targets[length:] == IGNORE).all()
    return len(ids)


def test_too_little_to_learn_from_says_what_to_do(tokenizer, corpus):
    with pytest.raises(UserError, match="lower the batch size or raise the length"):
        training_batches(FinetuneConfig(global_batch=16, max_seq_len=250), corpus, tokenizer)
    with pytest.raises(UserError, match="none of the 3 held-out conversations"):
        heldout_examples(FinetuneConfig(max_seq_len=5), corpus, tokenizer)
