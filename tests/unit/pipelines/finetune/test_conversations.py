"""Which tokens are learned, against a walk through the chat template written here; packed or not."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from cluster.errors import UserError
from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import ASSISTANT_ID, BOS_ID, END_ID, PAD_ID, SYSTEM_ID, USER_ID
from llm.tokenizer.train import train_tokenizer
from llm.training.loop import language_model_loss
from llm.training.loss import IGNORE, next_token_targets
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.conversations import heldout_examples, right_padded, training_batches

TEXTS = ["hello there", "how are you", "fine", "def f(x):\n    return x", "a much longer answer than before"]


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(train_tokenizer(TEXTS * 20, vocab_size=300))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One to four turns, some after a system message, some with a question left open at the end; and one that
    nobody has answered in each split.
    """
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(14):
        roles = ["system"] * (i % 2) + ["user", "assistant"] * (1 + i % 4) + ["user"] * (i % 3 == 0)
        if i in (4, 13):
            roles = ["system", "user"]
        messages = [{"role": r, "content": TEXTS[(i + j) % len(TEXTS)]} for j, r in enumerate(roles)]
        rows.append({"messages": messages, "split": "heldout" if i >= 10 else "train"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part-00000.parquet")
    return folder


def expected_targets(tokenizer, messages):
    """(ids, target of each position): a position is learned if what follows is in an assistant's turn."""
    ids, learned = [BOS_ID], [False]
    opening = {"system": SYSTEM_ID, "user": USER_ID, "assistant": ASSISTANT_ID}
    for message in messages:
        is_reply = message["role"] == "assistant"
        ids.append(opening[message["role"]])
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
    assert (len(batches), batches.too_long, batches.unanswered) == (9, 0, 1)
    seen = 0
    for step in range(batches.batches_per_epoch):
        batch = batches.batch(step)
        targets = next_token_targets(torch.from_numpy(batch.ids), torch.from_numpy(batch.loss_mask))
        seen += check_rows(batch.ids, targets.numpy(), expected)
    assert seen == 9
    heldout, too_long = heldout_examples(config, corpus, tokenizer)
    assert too_long == 0
    tokens, targets = right_padded(heldout, PAD_ID)
    assert check_rows(tokens.numpy(), targets.numpy(), expected) == 3


def check_rows(ids: np.ndarray, targets: np.ndarray, expected) -> int:
    for row, row_targets in zip(ids, targets, strict=True):
        length = int((row != PAD_ID).sum())
        assert row_targets[:length].tolist() == expected[tuple(row[:length].tolist())]
        assert (row_targets[length:] == IGNORE).all()
    return len(ids)


def test_a_packed_epoch_has_the_loss_and_the_gradient_of_the_conversations_alone(tokenizer, corpus):
    torch.set_num_threads(1)
    model = Decoder(model_config("tiny-100k", 300, d_model=32, d_ff=48, max_seq_len=250))
    model.init_weights(seed=1)
    losses, gradients = [], []
    for packing in (False, True):
        config = FinetuneConfig(global_batch=1, max_seq_len=250, packing=packing)
        batches = training_batches(config, corpus, tokenizer)
        assert len(batches) == 9
        assert (batches.batches_per_epoch < 9) == packing
        model.zero_grad()
        total = torch.zeros(())
        for step in range(batches.batches_per_epoch):
            batch = batches.batch(step)
            tokens = torch.from_numpy(batch.ids)
            targets = next_token_targets(tokens, torch.from_numpy(batch.loss_mask))
            total += language_model_loss(model, tokenizer.bos_id if packing else None)(tokens, targets)
        total.backward()
        losses.append(total.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for packed, alone in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_too_long_conversations_are_left_out_whole_and_counted(tokenizer, corpus):
    table = pyarrow.parquet.read_table(corpus / "part-00000.parquet").to_pylist()
    lengths = {"train": [], "heldout": []}
    for row in table:
        if any(message["role"] == "assistant" for message in row["messages"]):
            lengths[row["split"]].append(len(expected_targets(tokenizer, row["messages"])[0]))
    limit = sorted(lengths["train"])[5]
    batches = training_batches(FinetuneConfig(global_batch=2, max_seq_len=limit), corpus, tokenizer)
    assert len(batches) == sum(length <= limit for length in lengths["train"])
    assert 0 < batches.too_long == 9 - len(batches)
    limit = min(lengths["heldout"])
    heldout, too_long = heldout_examples(FinetuneConfig(max_seq_len=limit), corpus, tokenizer)
    assert {len(ids) for ids, _ in heldout} == {limit}
    assert len(heldout) + too_long == 3


def test_too_little_to_learn_from_says_what_to_do(tokenizer, corpus):
    with pytest.raises(UserError, match="lower the batch size or raise the length"):
        training_batches(FinetuneConfig(global_batch=16, max_seq_len=250), corpus, tokenizer)
    with pytest.raises(UserError, match="none of the 4 held-out conversations"):
        heldout_examples(FinetuneConfig(max_seq_len=5), corpus, tokenizer)
