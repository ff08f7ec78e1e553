"""The steps of a corpus, one unit after the other in this process."""

import json
from unittest import mock

import pyarrow.parquet as pq
import pytest

import pipelines.corpus_pieces
from pipelines.corpus import stage
from pipelines.corpus.config import CorpusConfig
from tests.unit.pipelines.units_here import UnitsHere


@pytest.fixture
def failing(monkeypatch):
    """Units that fail, and are left out."""
    names: set[str] = set()
    monkeypatch.setattr(stage, "run_units", UnitsHere(names))
    monkeypatch.setattr(pipelines.corpus_pieces, "UNIT_BYTES", (70,))  # a file of `sources` each
    return names


@pytest.fixture
def sources(tmp_path):
    """Three units; the last repeats a document of each other one."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, texts in {
        "a": ["first", "in a and c", "  "],
        "b": ["second", "in b and c", " "],
        "c": ["in a and c", "in b and c", "third"],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder)


def run(tmp_path, sources):
    return stage.run(CorpusConfig(root=str(tmp_path), name="code", paths=(sources,)), mock.Mock())


@pytest.mark.parametrize("lost", ["read-00000", "read-00001"])
def test_a_unit_that_can_be_read_at_the_second_run_counts_in_every_step(
    failing, sources, tmp_path, monkeypatch, lost
):
    whole = run(tmp_path / "whole", sources)
    assert whole.counts["removed"] == {"duplicate": 2, "empty": 2}
    first = tmp_path / "first"
    failing.add(lost)
    killed = mock.Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run(first, sources)
    _, draft, written = killed.call_args.args
    assert sum(unit.startswith("write-") for unit in written) == 2, "of three"
    draft.close()  # as the end of the process would
    failing.clear()
    again = run(first, sources)
    assert again.manifest == whole.manifest
    assert (again.fetch() / "removed.parquet").read_bytes() == (
        whole.fetch() / "removed.parquet"
    ).read_bytes()


def test_a_source_that_is_not_python_is_among_the_removed(failing, tmp_path):
    (tmp_path / "good.py").write_text('def f():\n    """Say one."""\n    return 1\n')
    (tmp_path / "old.py").write_text("import sys\nprint 'Python 2'\n")
    root = str(tmp_path / "root")
    stage.run(CorpusConfig(root=root, name="code", paths=(str(tmp_path / "*.py"),)), mock.Mock())
    chat = stage.run(
        CorpusConfig(root=root, name="chat", source="python-functions", from_corpus="code"), mock.Mock()
    )
    assert (chat.counts["documents"], chat.counts["removed"]) == (1, {"unparsable": 1})
    (row,) = pq.read_table(chat.fetch() / "removed.parquet").to_pylist()
    assert (row["source"], row["reason"], row["score"]) == ("old.py", "unparsable", 2.0)
