"""`manta submit`, before anything is sent: whose options are whose, places, and secrets."""

from pathlib import Path
from typing import Any

import pytest

import pipelines.jobs.places
from cluster import dashboard
from cluster.errors import UserError
from cluster.shared_places import Places
from pipelines.corpus.config import CorpusConfig
from pipelines.jobs import entry
from pipelines.jobs.places import move_place, move_places, places_on_disk
from pipelines.jobs.submit import main, split
from pipelines.quickstart.config import QuickstartConfig

REMOTE = "http://192.0.2.77:8265"


def test_options_before_the_stage_are_submit_s_and_the_rest_is_the_stage_s() -> None:
    own = ["--address", "corpus", "--detach", "--env", "A", "--env=B", "--driver-cpus", "2"]
    command = ["corpus", "--config", "c.yaml", "--address", "x"]
    assert split([*own, *command]) == (own, command)
    assert split(["--help"]) == (["--help"], [])
    assert split([]) == ([], [])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "submit what?"),
        (["jobs"], "`jobs` runs here alone"),
        (["corpsu"], "`corpsu` is no stage"),
        (["--detatch", "x", "corpus"], "--detatch"),
        (["corpus", "--pathz", "x"], "--pathz"),
        (["corpus", "--source", "python-stdlib", "--address", "h:1"], "--address goes before the stage"),
        (["run", "absent.yaml"], "absent.yaml: No such file"),
    ],
)
def test_a_mistake_is_found_before_the_cluster_is_asked(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_: Any) -> None:
        raise AssertionError("the cluster was asked")

    monkeypatch.setattr("pipelines.jobs.submit.find_dashboard", unwanted)
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stage",
    [
        ["corpus", "--source", "python-stdlib"],
        ["corpus", "--root", "s3://bucket/runs", "--paths", "data/*.txt"],
        ["quickstart", "--root", "/runs"],
        ["serve", "--model", "base"],
    ],
)
def test_a_cluster_elsewhere_refuses_places_on_this_machine(stage: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"is a place on this machine, which the cluster at .* does not see"
    ) as caught:
        main(["--address", REMOTE, *stage])
    assert "\n" not in str(caught.value)


def test_a_forwarded_port_is_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard answers at 127.0.0.1, but no head with its session runs here."""
    answer = dashboard.Dashboard(
        "http://127.0.0.1:8265", open=False, takes_us=True, session="session_elsewhere"
    )
    monkeypatch.setattr(dashboard, "reach", lambda url: answer)
    assert not dashboard.runs_here("http://127.0.0.1:8265")
    with pytest.raises(UserError, match="does not see"):
        move_place("--root", "runs/mine", lambda: answer.url)
    assert move_place("--root", "s3://bucket/runs", lambda: answer.url) == "s3://bucket/runs"


def test_places_are_made_absolute_for_a_cluster_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipelines.jobs.places, "runs_here", lambda url: True)
    monkeypatch.chdir(tmp_path)

    def move(flag: str, place: str) -> str:
        return move_place(flag, place, lambda: "http://127.0.0.1:8265")

    corpus = move_places(CorpusConfig(root="runs/a", paths=("data/*.txt", "s3://b/c")), move)
    assert (corpus.root, corpus.paths) == (f"{tmp_path}/runs/a", (f"{tmp_path}/data/*.txt", "s3://b/c"))
    assert move_places(QuickstartConfig(source="python-stdlib"), move).source == "python-stdlib"
    assert move_places(QuickstartConfig(source="code"), move).source == f"{tmp_path}/code"


def test_values_of_variables_and_credentials_in_addresses_are_refused_and_not_repeated() -> None:
    secret = "s3cr3t-value"
    for arguments in (
        ["--env", f"WANDB_API_KEY={secret}", "corpus", "--source", "python-stdlib"],
        ["corpus", "--root", f"s3://user:{secret}@bucket/runs", "--source", "python-stdlib"],
    ):
        with pytest.raises(UserError, match="can read what a job is told") as caught:
            main(arguments)
        assert secret not in str(caught.value)


def test_a_job_says_which_variables_the_cluster_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRESENT", "value")
    monkeypatch.delenv("ABSENT", raising=False)
    assert entry.main(["PRESENT,ABSENT", "ls"]) == 2
    assert "needs ABSENT, which" in capsys.readouterr().err
    assert entry.main(["PRESENT", "--version"]) == 0


def test_places_on_a_disk_are_those_without_a_scheme() -> None:
    corpus = CorpusConfig(root="runs/a", paths=("data/*.txt", "s3://b/c"))
    found = places_on_disk(corpus, CorpusConfig(root="runs/a", source="python-stdlib"))
    assert (found.written, found.read) == ({"--root": "runs/a"}, {"--paths": ("data/*.txt",)})
    assert places_on_disk(CorpusConfig(root="s3://b/a", source="python-stdlib")) == Places({}, {})
