"""A run that was stopped must end as if it had not been, bit for bit, and never from a damaged checkpoint."""

import dataclasses
import itertools
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from llm.training.checkpoint import newest_checkpoint, newest_state
from llm.training.checkpoint_files import SafeReader
from llm.training.checkpoint_manifest import what_is_wrong
from llm.training.loop import train
from llm.training.metrics_log import read_records
from llm.training.recorder import Superseded
from llm.training.step import NonFiniteError
from tests.unit.llm.training.checkpointed_run import RECIPE, FolderMirror, a_run, assert_same, micro_batches


class Killed(Exception):
    pass


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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


DAMAGES = {"flipped": flip_a_bit, "truncated": truncate, "lost": Path.unlink}


def test_a_checkpoint_with_any_damage_is_passed_over(tmp_path):
    """To any of its files, in the folder or in the mirror; on a machine that has a copy and on one that has
    none.
    """
    interrupted(tmp_path, at=10, mirror=FolderMirror(tmp_path / "mirror"))
    kept = tmp_path / "checkpoints"
    newest = kept / "step-00000008"
    files = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
    assert {path.name for path in files} == {
        ".metadata",
        "__0_0.distcp",
        "config.json",
        "manifest.json",
        "state.json",
    }
    for case, (file, damage) in enumerate(itertools.product(files, DAMAGES)):
        here, mirror = tmp_path / f"here-{case}", FolderMirror(tmp_path / f"mirror-{case}")
        shutil.copytree(kept, here)
        DAMAGES[damage](here / newest.name / file)
        with pytest.warns(UserWarning, match="step-00000008 is damaged"):
            assert newest_checkpoint(here).name == "step-00000004", (file, damage)

        shutil.copytree(tmp_path / "mirror", mirror.root)
        assert newest_checkpoint(here, mirror).name == newest.name, "the copy was mended"
        DAMAGES[damage](mirror.root / newest.name / file)
        if str(file) == "manifest.json" and damage == "lost":
            continue  # Then it was never made.
        with pytest.warns(UserWarning, match="step-00000008 is damaged"):
            found = newest_checkpoint(tmp_path / f"elsewhere-{case}", mirror)
        assert found.name == "step-00000004", (file, damage)
        assert what_is_wrong(found) is None


def test_a_run_goes_on_from_before_the_damage(tmp_path, undisturbed):
    interrupted(tmp_path, at=10)
    truncate(tmp_path / "checkpoints/step-00000008/dcp/__0_0.distcp")
    resumed = a_run(tmp_path)
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
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
