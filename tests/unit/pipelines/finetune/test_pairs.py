"""What an encoder-decoder learns of conversations, packed or not, on one rank or two, stopped or not."""

import contextlib

import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.distributed as dist

from cluster.errors import UserError
from llm.models.load import build
from llm.models.lora import add_adapters, initial_adapters
from llm.models.lora_config import LoraConfig
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from llm.tokenizer.special import ASSISTANT_ID, END_ID, EOS_ID, SYSTEM_ID, USER_ID
from llm.tokenizer.train import train_tokenizer
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.metrics_log import read_records
from llm.training.parallel.fsdp import data_mesh, shard
from llm.training.parallel.weights import gather_weights, scatter_weights
from pipelines.finetune.config import FinetuneConfig
from pipelines.finetune.lessons import read_lessons
from pipelines.finetune.pairs import heldout_pairs, read_pairs, training_pairs
from pipelines.finetune.worker import response_loss
from pipelines.model_options import ModelOptions
from tests.unit.ranks import in_turn

TEXTS = ["hello there", "how are you", "fine", "def f(x):\n    return x", "a much longer answer than before"]
SHAPE = ModelOptions(preset="t5-tiny", d_ff=48)
STOP = 5


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(train_tokenizer(TEXTS * 20, vocab_size=300))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Pairs, longer conversations, some after a system message; two that nobody has answered."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(30):
        roles = ["system"] * (i % 3 == 1) + ["user", "assistant"] * (2 if i % 5 == 4 else 1)
        roles += ["user"] * (i in (7, 25))
        messages = [{"role": r, "content": TEXTS[(i + j) % len(TEXTS)]} for j, r in enumerate(roles)]
        rows.append({"messages": messages, "split": "heldout" if i >= 22 else "train"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part-00000.parquet")
    return folder


def test_a_question_is_read_bare_and_a_longer_conversation_with_its_marks(tokenizer, corpus):
    pairs = read_pairs(corpus, "train", tokenizer)
    said = [tokenizer.encode(text) for text in TEXTS]
    assert pairs[0] == ([*said[0], EOS_ID], [*said[1], EOS_ID])
    assert pairs[1] == ([SYSTEM_ID, *said[1], END_ID, USER_ID, *said[2], END_ID, EOS_ID], [*said[3], EOS_ID])
    turns = [USER_ID, *said[4], END_ID, ASSISTANT_ID, *said[0], END_ID, USER_ID, *said[1], END_ID]
    assert pairs[9] == ([*turns, EOS_ID], [*said[2], EOS_ID])
    assert pairs[7][1] == []
    made = training_pairs(FinetuneConfig(global_batch=3, max_seq_len=250), corpus, tokenizer)
    assert (len(made), made.too_long, made.unanswered) == (21, 0, 1)
    heldout, too_long = heldout_pairs(FinetuneConfig(max_seq_len=250, max_target_len=6), corpus, tokenizer)
    assert 0 < too_long == 7 - len(heldout)
    assert max(len(target) for _, target in heldout) <= 6
    with pytest.raises(UserError, match=r"none of the 7 held-out conversations .* --max-target-len 2"):
        heldout_pairs(FinetuneConfig(max_target_len=2), corpus, tokenizer)
    with pytest.raises(UserError, match=r"21 pairs of at most 256 tokens to read .* do not fill"):
        training_pairs(FinetuneConfig(global_batch=22), corpus, tokenizer)


def test_a_packed_epoch_has_the_loss_and_the_gradient_of_the_pairs_alone(tokenizer, corpus):
    torch.set_num_threads(1)
    shape = SHAPE.trained_shape(len(tokenizer))
    model = build(shape).to_empty(device="cpu")
    model.init_weights(seed=1)
    losses, gradients = [], []
    for packing in (False, True):
        config = FinetuneConfig(global_batch=1, max_seq_len=250, max_target_len=120, packing=packing)
        lessons = read_lessons(config, shape, corpus, tokenizer)
        assert (lessons.batches.batches_per_epoch < 21) == packing
        model.zero_grad()
        total = torch.zeros(())
        for step in range(lessons.batches.batches_per_epoch):
            total += language_model_loss(model, lessons.opening_ids[0])(*lessons.batch(step, 0, 1))
        total.backward()
        losses.append(total.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for packed, alone in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


class Stopped(Exception):
    """Stands for whatever ends a run halfway."""


def run_until(root, corpus, tokenizer, name, stop, rank):
    """Weights at the end and the loss of what is held out, as a worker does it."""
    config = FinetuneConfig(
        global_batch=3,
        micro_batch=2,
        max_seq_len=120,
        max_target_len=60,
        packing=True,
        checkpoint_every=3,
        evaluate_every=4,
        log_every=1,
        epochs=3,
    )
    shape = SHAPE.trained_shape(len(tokenizer))
    lessons = read_lessons(config, shape, corpus, tokenizer)
    whole = build(shape).to_empty(device="cpu")
    whole.init_weights(seed=3)
    model = build(shape)
    add_adapters(model, LoraConfig(rank=rank)) if rank else None
    shard(model, data_mesh(torch.device("cpu")), "fp32")
    model.to_empty(device="cpu")
    scatter_weights(model, whole.state_dict() | initial_adapters(model, seed=4))

    def micro_batches(step):
        if step == stop:
            raise Stopped
        rows = lessons.batch(step, dist.get_rank(), dist.get_world_size())
        return list(zip(*(each.split(config.micro_batch) for each in rows), strict=True))

    folder = root / f"{name}-{rank}"
    folder.mkdir(exist_ok=True)
    run = TrainingRun(
        model=model,
        precision="fp32",
        recipe=config.recipe(config.epochs * lessons.batches.batches_per_epoch),
        folder=folder,
        micro_batches=micro_batches,
        data_state=lambda steps: {},
        check_data_state=lambda state: None,
        evaluate=lambda: {"heldout_loss": response_loss(model, lessons, config.micro_batch)},
        loss_sum=language_model_loss(model, lessons.opening_ids[0]),
    )
    with contextlib.suppress(Stopped):
        train(run)
    return gather_weights(model)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus, tokenizer):
    root = tmp_path_factory.mktemp("runs")
    runs = [(1, "alone", None), (1, "stopped", STOP), (1, "stopped", None), (2, "two", None)]
    arguments = [
        (world, run_until, (root, corpus, tokenizer, name, stop, rank))
        for rank in (0, 4)
        for world, name, stop in runs
    ]
    done = in_turn(arguments)
    return root, {rank: [each[0] for each in done[4 * (rank > 0) :][:4]] for rank in (0, 4)}


@pytest.mark.parametrize("rank", [0, 4])
def test_a_resumed_run_is_the_same_to_the_bit_and_two_ranks_learn_the_same(runs, rank):
    root, weights = runs
    alone, _, resumed, two = weights[rank]
    assert all(torch.equal(value, alone[name]) for name, value in resumed.items())
    logs = [(root / f"{name}-{rank}" / "metrics.jsonl").read_bytes() for name in ("alone", "stopped")]
    assert logs[0] == logs[1]
    records, expected = (read_records(root / f"{name}-{rank}" / "metrics.jsonl") for name in ("two", "alone"))
    assert len(expected) > STOP
    assert [each["tokens"] for each in records] == [each["tokens"] for each in expected]
    for name in ("loss", "heldout_loss"):
        found, wanted = ([each[name] for each in some if name in each] for some in (records, expected))
        assert found == pytest.approx(wanted, rel=1e-3)
    assert expected[-1]["loss"] < expected[0]["loss"]
    assert any(".adapters." in name for name in two) == (rank > 0)
