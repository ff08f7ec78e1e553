"""A cluster's nodes on other machines must see the folders and files that a stage names."""

import os
from pathlib import Path

import pytest
import ray

from cluster import shared_places
from cluster.errors import UserError
from cluster.shared_places import Places, check_nodes, require_seen, size

NODES = {"a1": "near", "b2": "far"}


def sees_all(nodes: list[str], paths: list[str]) -> dict[str, list[int | None]]:
    return {node: [size(path) for path in paths] for node in nodes}


def far_sees_nothing(nodes: list[str], paths: list[str]) -> dict[str, list[int | None]]:
    return sees_all(nodes, paths) | {"b2": [None for _ in paths]}


@pytest.fixture
def inputs(tmp_path: Path) -> str:
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    (tmp_path / "raw" / "deep" / "a.txt").write_text("some text")
    return str(tmp_path / "raw")


def test_a_shared_folder_is_allowed_and_nothing_is_left_in_it(tmp_path: Path, inputs: str) -> None:
    asked: list[str] = []

    def ask(nodes: list[str], paths: list[str]) -> dict[str, list[int | None]]:
        asked.extend(paths)
        return sees_all(nodes, paths)

    root = tmp_path / "root"
    check_nodes(Places({"--root": str(root)}, {"--paths": (inputs, f"{inputs}/**/*.txt")}), NODES, ask)
    assert Path(asked[0]).parent == root
    assert asked[1:] == [f"{inputs}/deep/a.txt"] * 2
    assert os.listdir(root) == []


@pytest.mark.parametrize("flag", ["--root", "--paths"])
def test_a_place_that_a_node_does_not_see_is_one_line(flag: str, tmp_path: Path, inputs: str) -> None:
    places = Places({flag: inputs}, {}) if flag == "--root" else Places({}, {flag: (inputs,)})
    with pytest.raises(UserError, match=f"{flag} {inputs} is a place on this machine, .* node far ") as seen:
        check_nodes(places, NODES, far_sees_nothing)
    assert "\n" not in str(seen.value)
    assert os.listdir(inputs) == ["deep"]


def test_a_folder_of_the_same_name_elsewhere_is_another_folder(tmp_path: Path) -> None:
    """The other machine has the folder, but not the file that was just made in this one."""
    with pytest.raises(UserError, match="does not see"):
        check_nodes(Places({"--root": str(tmp_path)}, {}), NODES, far_sees_nothing)


@pytest.mark.parametrize(
    "addresses, asked", [(["127.0.0.1", "127.0.0.1"], 0), (["127.0.0.1", "192.0.2.7"], 1)]
)
def test_only_nodes_on_other_machines_are_asked(
    addresses: list[str], asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a cluster of several nodes on this machine keeps its local root."""
    nodes = [
        {"NodeID": str(number), "NodeManagerHostname": "host", "NodeManagerAddress": address, "Alive": True}
        for number, address in enumerate(addresses)
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(shared_places, "_ask", lambda ids, paths: {node: [None] for node in ids})
    places = Places({"--root": str(tmp_path)}, {})
    if asked:
        with pytest.raises(UserError, match="node host"):
            require_seen(places)
    else:
        require_seen(places)
