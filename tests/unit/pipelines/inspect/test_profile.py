"""`manta profile` finds the run, is answered by it, and leaves nothing behind when it is not."""

import threading
import time
from pathlib import Path

import pytest

from cluster.artifacts import lease
from cluster.artifacts.draft import Draft
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.training.profile_window import Profile, ProfileRequest
from pipelines import profile_desk
from pipelines.inspect import profile
from pipelines.inspect.profile import ProfileConfig


@pytest.fixture(autouse=True)
def runs_of_other_processes(monkeypatch):
    """A lease of this process would count as left behind."""
    monkeypatch.setattr(lease, "is_gone", lambda holder: False)


def at_work(root: Path, name: str, seed: int = 0) -> Draft:
    draft = ArtifactStore(root).begin(
        kind="models", name=name, stage="pretrain", logic_version=1, what={"seed": seed}, inputs={}
    )
    assert isinstance(draft, Draft)
    return draft


def a_run(draft: Draft) -> None:
    """What the first worker does about requests."""
    while (request := profile_desk.wanted(draft.folder)) is None:
        time.sleep(0.01)
    profile_desk.answer(draft.folder, Profile(request, 41, Path("anywhere/profiles/step-00000041")))


def test_a_run_is_asked_and_answers(tmp_path, capfd):
    draft, other = at_work(tmp_path, "base"), at_work(tmp_path, "basement")
    worker = threading.Thread(target=a_run, args=(draft,))
    worker.start()
    profile.run(ProfileConfig(model="base", steps=3, root=str(tmp_path)))
    worker.join()
    said = capfd.readouterr().out
    assert f"steps 41 to 43 are in {draft.folder}/profiles/step-00000041; open them" in said
    assert draft.folder.files().keys() == other.folder.files().keys() == set()


def test_a_run_that_ends_before_it_answers_is_not_waited_for(tmp_path, monkeypatch):
    draft = at_work(tmp_path, "base")
    monkeypatch.setattr(profile, "_LOOK_SECONDS", 0.1)
    threading.Timer(0.3, draft.close).start()
    with pytest.raises(UserError, match="no run is making models/base/"):
        profile.run(ProfileConfig(model="base", root=str(tmp_path)))
    assert profile_desk.wanted(draft.folder) is None


def test_what_is_not_clear_is_said_in_one_line(tmp_path):
    drafts = [at_work(tmp_path, "base", seed) for seed in range(2)]
    root = str(tmp_path)
    with pytest.raises(UserError, match=r"base may be any of models/base/.*: give NAME/VERSION"):
        profile.run(ProfileConfig(model="base", root=root))
    with pytest.raises(UserError, match=r"no run is making models/bas under .*; at work is models/base/"):
        profile.run(ProfileConfig(model="bas", root=root))
    profile_desk.ask(drafts[0].folder, 5, all_ranks=False)
    with pytest.raises(UserError, match="a profile is being made for somebody else"):
        profile.run(ProfileConfig(model=f"base/{drafts[0].version[:6]}", root=root))
    drafts[0].folder.write("profiles/request.json", b'{"steps": 5')
    assert profile_desk.wanted(drafts[0].folder) is None, "one that cannot be read is none"
    assert isinstance(profile_desk.ask(drafts[1].folder, 5, all_ranks=True), ProfileRequest)
