"""Options of the loop together: each does what it says, and a resumed run equals one that was left alone."""

import dataclasses

import pytest
import torch

from llm.models.load import build
from llm.models.presets import model_config
from llm.training import outliers
from llm.training.checkpoint import load_checkpoint, newest_checkpoint
from llm.training.ema import average_weights
from llm.training.loop import TrainingRun, language_model_loss, train
from llm.training.loss import next_token_targets
from llm.training.metrics_log import read_records
from llm.training.optimizer import make_optimizer
from llm.training.step import NonFiniteError
from tests.unit.llm.training.checkpointed_run import CONFIG, RECIPE

PLAIN = dataclasses.replace(
    RECIPE,
    warmup_steps=2,
    decay="wsd",
    decay_fraction=0.5,
    embedding_scale=1.0,
    head_scale=1.0,
    evaluate_every=0,
    keep_checkpoints=9,
)
EVERYTHING = dataclasses.replace(
    PLAIN, algorithm="muon", ema_decay=0.8, outlier_sigmas=50.0, activation_checkpointing="selective"
)
SMALL = {"vocab_size": 64, "d_model": 48, "n_layers": 1, "d_ff": 48}
OTHERS = {
    "encoder-decoder": model_config("t5-tiny", **SMALL, n_encoder_layers=1),
    "encoder": model_config("bert-tiny", **SMALL),
    "mixture of experts": CONFIG.model_copy(update={"n_experts": 4, "experts_per_token": 2}),
}
BAD = 8
"""A step whose batch gives a gradient a thousand times as large as others do."""


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def a_short_window(monkeypatch):
    monkeypatch.setattr(outliers, "ENOUGH", 4)


def a_run(folder, recipe, kill_at=None, config=CONFIG, **changes):
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    model = build(config).to_empty(device="cpu")
    model.init_weights(seed=1)

    def micro_batches(step):
        if step == kill_at:
            raise Killed
        tokens = torch.randint(CONFIG.vocab_size, (4, 10), generator=torch.Generator().manual_seed(step))
        tokens[0, 0] = step  # which the loss can tell
        read = [tokens.flip(1)] if config.family == "encoder-decoder" else []
        return [(*read, tokens, next_token_targets(tokens))]

    usual = language_model_loss(model, z_loss=1e-3)

    def loss_sum(*micro_batch):
        loss, z_loss = usual(*micro_batch)
        tokens = micro_batch[-2]
        return (loss * (1000 if tokens[0, 0] == BAD else 1), z_loss)

    run = TrainingRun(
        model=model,
        precision="fp32",
        recipe=recipe,
        folder=folder,
        micro_batches=micro_batches,
        samples_per_step=4,
        data_state=lambda steps: {},
        check_data_state=lambda state: None,
        loss_sum=loss_sum,
    )
    return dataclasses.replace(run, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outliers, "ENOUGH", 4)
        run = a_run(tmp_path_factory.mktemp("whole"), EVERYTHING)
        train(run)
    return run


def weights_of(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kill_at", [6, 9, 11])
def test_a_resumed_run_equals_one_that_was_left_alone(tmp_path, whole, kill_at):
    with pytest.raises(Killed):
        train(a_run(tmp_path, EVERYTHING, kill_at))
    resumed = a_run(tmp_path, EVERYTHING)
    train(resumed)
    assert_equal(weights_of(resumed), weights_of(whole))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    train(again := a_run(tmp_path, EVERYTHING, kill_at=12))
    assert_equal(weights_of(again), weights_of(whole))


@pytest.mark.parametrize("family", OTHERS)
def test_so_does_one_of_any_other_family(tmp_path, family):
    """Killed after the outlier, it meets that again."""
    config = OTHERS[family]
    train(left_alone := a_run(tmp_path / "whole", EVERYTHING, config=config))
    with pytest.raises(Killed):
        train(a_run(tmp_path / "killed", EVERYTHING, kill_at=BAD + 2, config=config))
    resumed = a_run(tmp_path / "killed", EVERYTHING, config=config)
    train(resumed)
    assert_equal(weights_of(resumed), weights_of(left_alone))
    logs = [run.folder / "metrics.jsonl" for run in (resumed, left_alone)]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert read_records(logs[0])[-1]["skipped_steps"] == 1


def test_an_outlier_moves_nothing_and_is_counted(tmp_path, whole):
    records = read_records(whole.folder / "metrics.jsonl")
    assert [record["skipped_steps"] for record in records] == [0] * 8 + [1] * 4
    assert all(record["z_loss"] > 0 for record in records)

    recipe = dataclasses.replace(EVERYTHING, checkpoint_every=1)
    run = a_run(tmp_path, recipe)
    train(run)
    optimizer = make_optimizer(run.model, recipe, "fp32")
    average_weights(optimizer, recipe.ema_decay)
    before, after = ({}, {})
    for steps, tensors in ((8, before), (9, after)):
        load_checkpoint(run.checkpoints / f"step-{steps:08d}", run.model, optimizer)
        tensors |= weights_of(run)
        for name, parameter in run.model.named_parameters():
            tensors |= {f"{name}.{key}": value.clone() for key, value in optimizer.state[parameter].items()}
    assert_equal(before, after)


def test_the_model_is_the_average_of_the_weights_in_the_end(tmp_path):
    """Compared with the sum written out in float64, over the weights of every checkpoint."""
    recipe = dataclasses.replace(PLAIN, ema_decay=0.8, checkpoint_every=1, keep_checkpoints=99)
    run = a_run(tmp_path, recipe)
    train(run)
    averaged, total = weights_of(run), sum(0.8**age for age in range(12))
    expected = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in averaged.items()}
    for steps in range(1, 13):
        optimizer = make_optimizer(run.model, recipe, "fp32")
        load_checkpoint(run.checkpoints / f"step-{steps:08d}", run.model, optimizer)
        for name, value in weights_of(run).items():
            expected[name] += 0.8 ** (12 - steps) / total * value.double()
    for name, value in averaged.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_that_never_fell_is_extended_as_if_it_had_been_as_long_from_the_beginning(tmp_path):
    """What a constant rate is for: the fall is added when the run is to end."""
    short = a_run(tmp_path / "short", dataclasses.replace(PLAIN, steps=6, decay_fraction=0.0))
    train(short)
    longer = a_run(tmp_path / "longer", PLAIN, extended=lambda: newest_checkpoint(short.checkpoints))
    train(longer)
    train(at_once := a_run(tmp_path / "at_once", PLAIN))
    assert_equal(weights_of(longer), weights_of(at_once))


def test_a_bad_batch_is_named(tmp_path):
    run = a_run(tmp_path, PLAIN)
    usual = run.loss_sum
    bad = dataclasses.replace(
        run, loss_sum=lambda tokens, targets: usual(tokens, targets)[0] / (tokens[0, 0] - 5)
    )
    words = "step 6: the loss is (nan|inf), in samples 20 to 23. The step was not taken; step-00000004 is"
    with pytest.raises(NonFiniteError, match=words):
        train(bad)
