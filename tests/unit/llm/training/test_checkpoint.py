"""A run that was stopped must end as if it had not been, bit for bit, and never from a damaged checkpoint."""

import dataclasses
import pickle
import shutil
import warnings

import pytest
import torch

from llm.models.decoder import Decoder
from llm.models.presets import model_config
from llm.training.checkpoint import newest_checkpoint, newest_state
from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_manifest import what_is_wrong
from llm.training.loop import TrainingRun, train
from llm.training.loss import next_token_targets
from llm.training.metrics_log import read_records
from llm.training.recipe import Recipe
from llm.training.recorder import Superseded
from llm.training.step import NonFiniteError

CONFIG = model_config("tiny-100k", vocab_size=64, d_model=32, n_layers=1, d_ff=48)
RECIPE = Recipe(
    steps=12,
    peak_learning_rate=1e-2,
    minimum_learning_rate=1e-3,
    warmup_steps=3,
    decay="linear",
    embedding_scale=3.0,
    head_scale=2.0,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    clip_norm=1.0,
    evaluate_every=4,
    checkpoint_every=4,
    keep_checkpoints=2,
    flush_every=3,
)


class Killed(Exception):
    pass


def micro_batches(step: int):
    tokens = torch.randint(CONFIG.vocab_size, (4, 10), generator=torch.Generator().manual_seed(step))
    return [(tokens, next_token_targets(tokens))]


def a_run(folder, **changes) -> TrainingRun:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    model = Decoder(CONFIG)
    model.init_weights(seed=1)
    run = TrainingRun(
        model=model,
        precision="fp32",
        recipe=RECIPE,
        folder=folder,
        micro_batches=micro_batches,
        data_state=lambda steps: {"samples_consumed": 4 * steps},
        check_data_state=lambda state: None,
        evaluate=lambda: {"heldout": model.embed.weight.sum().item()},
        attachments={"config.json": b"{}\n"},
    )
    return dataclasses.replace(run, **changes)


def interrupted(folder, at: int, **changes) -> None:
    """A run that dies while it fetches the batch of 0-based step `at`."""

    def deadly(step: int):
        if step == at:
            raise Killed
        return micro_batches(step)

    with pytest.raises(Killed):
        train(a_run(folder, micro_batches=deadly, **changes))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = a_run(tmp_path_factory.mktemp("undisturbed"))
    train(run)
    return run


def assert_same(run: TrainingRun, undisturbed: TrainingRun) -> None:
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    ours, theirs = (r.folder / "metrics.jsonl" for r in (run, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(read_records(ours)) == RECIPE.steps


def test_resumed_twice_equals_undisturbed(tmp_path, undisturbed):
    interrupted(tmp_path, at=6)
    interrupted(tmp_path, at=10)
    resumed = a_run(tmp_path)
    train(resumed)
    assert_same(resumed, undisturbed)


def test_an_extended_run_equals_one_that_was_as_long_from_the_beginning(tmp_path):
    """With a constant learning rate, which does not depend on the length."""
    recipe = dataclasses.replace(RECIPE, minimum_learning_rate=RECIPE.peak_learning_rate, warmup_steps=0)
    short = a_run(tmp_path / "short", recipe=dataclasses.replace(recipe, steps=8))
    train(short)
    longer = a_run(tmp_path / "longer", recipe=recipe, extended=lambda: newest_checkpoint(short.checkpoints))
    train(longer)
    whole = a_run(tmp_path / "whole", recipe=recipe)
    train(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[name], value), name
    records = read_records(longer.folder / "metrics.jsonl")
    assert records == read_records(whole.folder / "metrics.jsonl")[8:]


def test_finished_run_does_not_train_again(tmp_path, undisturbed):
    shutil.copytree(undisturbed.folder, tmp_path, dirs_exist_ok=True)
    again = a_run(tmp_path, micro_batches=lambda step: pytest.fail("trained again"))
    train(again)
    assert_same(again, undisturbed)


@pytest.mark.parametrize("damage", ["flip a byte", "tear a file", "lose the manifest", "lose a file"])
def test_damaged_newest_checkpoint_is_passed_over(tmp_path, undisturbed, damage):
    interrupted(tmp_path, at=10)
    newest = tmp_path / "checkpoints" / "step-00000008"
    tensors = next((newest / "dcp").glob("*.distcp"))
    content = tensors.read_bytes()
    if damage == "flip a byte":
        middle = len(content) // 2
        tensors.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "tear a file":
        tensors.write_bytes(content[:-100])
    elif damage == "lose the manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "state.json").unlink()
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        assert newest_checkpoint(tmp_path / "checkpoints").name == "step-00000004"
    resumed = a_run(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        train(resumed)
    assert_same(resumed, undisturbed)


def test_only_the_newest_are_kept_and_each_is_whole(undisturbed):
    kept = sorted((undisturbed.folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000008", "step-00000012"]
    for path in kept:
        assert what_is_wrong(path) is None
        assert (path / "config.json").read_bytes() == b"{}\n"


def test_what_a_run_saves_that_was_set_back_is_kept(tmp_path):
    """The later checkpoint is damaged: it must not count as one of those to keep."""
    keep_one = dataclasses.replace(RECIPE, keep_checkpoints=1)
    interrupted(tmp_path, at=9, recipe=keep_one)
    (tmp_path / "checkpoints/step-00000008/state.json").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="is damaged"):
        interrupted(tmp_path, at=5, recipe=keep_one)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert what_is_wrong(tmp_path / "checkpoints/step-00000004") is None


def test_torn_last_line_of_the_log_is_cut_off(tmp_path, undisturbed):
    interrupted(tmp_path, at=10)
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 10, "lo')
    resumed = a_run(tmp_path)
    train(resumed)
    assert_same(resumed, undisturbed)


def test_a_superseded_run_writes_no_more(tmp_path):
    with pytest.raises(Superseded):
        train(a_run(tmp_path, may_write=lambda: False))
    assert read_records(tmp_path / "metrics.jsonl") == []
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_non_finite_loss_names_the_step_and_the_good_checkpoint(tmp_path):
    run = a_run(tmp_path)

    def poisoned(step: int):
        if step == 5:
            run.model.norm.weight.data.fill_(float("nan"))
        return micro_batches(step)

    with pytest.raises(NonFiniteError, match=r"step 6: .* step-00000004 is unharmed"):
        train(dataclasses.replace(run, micro_batches=poisoned))


def test_index_that_names_code_is_refused(tmp_path, undisturbed):
    shutil.copytree(undisturbed.folder / "checkpoints" / "step-00000012" / "dcp", tmp_path / "dcp")
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(exec))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.exec"):
        SafeReader(tmp_path / "dcp").read_metadata()


def test_the_state_can_be_read_before_there_is_a_model(tmp_path):
    assert newest_state(tmp_path / "checkpoints") is None
    interrupted(tmp_path, at=10, precision="bf16")
    state = newest_state(tmp_path / "checkpoints")
    assert (state["step"], state["precision"]) == (8, "bf16")
    (tmp_path / "checkpoints/step-00000008/state.json").write_bytes(b"torn")
    assert newest_state(tmp_path / "checkpoints")["step"] == 4
