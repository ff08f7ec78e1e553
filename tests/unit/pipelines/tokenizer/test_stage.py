"""The tokenizer stage in this process: weighted samples, the report, and memory that is known before."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact, verify
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.text.identity import content_id, is_heldout
from llm.tokenizer.sentence_piece import SentencePieceTokenizer
from pipelines import corpus_pieces
from pipelines.corpus.tables import CONVERSATIONS, text_bytes
from pipelines.inspect import show
from pipelines.tokenizer import sample_worker, stage, training
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokenizer.sample_worker import SAMPLE_FOLDER
from tests.unit.pipelines.units_here import NO_CLUSTER, UnitsHere

SOURCES = {"web/en/a.jsonl": 300, "web/de/b.jsonl": 100, "code/x=1,y.py": 200, "notes.txt": 20}
LANGUAGES = {"web/en/a.jsonl": "en", "web/de/b.jsonl": "de"}


def some_words(drawn: random.Random) -> list[str]:
    return ["".join(drawn.choices("abcdefghij", k=drawn.randint(1, 8))) for _ in range(400)]


def documents(heldout: float) -> list[dict[str, Any]]:
    drawn = random.Random(0)
    words = some_words(drawn)
    rows = []
    for source, count in SOURCES.items():
        for _ in range(count):
            text = " ".join(drawn.choices(words, k=drawn.randint(20, 200))) + drawn.choice(
                ["", " 日本", "\n"]
            )
            id = content_id(text)
            split = "heldout" if is_heldout(id, 0, heldout) else "train"
            language = LANGUAGES.get(source)
            rows.append({"id": id, "text": text, "source": source, "split": split, "language": language})
    return rows


def conversations() -> list[dict[str, Any]]:
    """Of one to four messages each, from the sources "a" and "b"."""
    drawn = random.Random(1)
    words = some_words(drawn)
    rows = []
    for number in range(240):
        contents = [" ".join(drawn.choices(words, k=9)) + " 日" for _ in range(drawn.randint(1, 4))]
        messages = [
            {"role": ("user", "assistant")[turn % 2], "content": content}
            for turn, content in enumerate(contents)
        ]
        id = content_id("".join(contents))
        split = "heldout" if is_heldout(id, 0, 0.3) else "train"
        source = "b" if number % 3 else "a"
        rows.append({"id": id, "messages": messages, "source": source, "group": id, "split": split})
    return rows


def make_corpus(root: Path, heldout: float = 0.3, language: bool = True) -> list[dict[str, Any]]:
    """corpora/a, in files and row groups of a few documents."""
    rows = documents(heldout)
    columns = ["id", "text", "source", "split", *(["language"] if language else [])]
    keep(root, rows, pa.Table.from_pylist(rows).select(columns), "text")
    return rows


def make_conversations(root: Path) -> list[dict[str, Any]]:
    """corpora/a of conversations, likewise."""
    rows = conversations()
    keep(root, rows, pa.Table.from_pylist(rows, schema=CONVERSATIONS), "conversations")
    return rows


def keep(root: Path, rows: list[dict[str, Any]], table: pa.Table, kind: str) -> None:
    draft = ArtifactStore(root).begin(
        kind="corpora", name="a", stage="made", logic_version=1, what={"rows": rows}, inputs={}
    )
    assert isinstance(draft, Draft)
    with draft.writing() as writing:
        for number, first in enumerate(range(0, len(rows), 200)):
            file = writing.path / f"part-{number:05d}.parquet"
            pq.write_table(table.slice(first, 200), file, row_group_size=16)
    sizes = {
        f"{split}_bytes": sum(text_bytes(row) for row in rows if row["split"] == split)
        for split in ("train", "heldout")
    }
    draft.commit({"format": kind, "documents": len(rows), **sizes})


class Run:
    """Runs the stage; `sampled` has the texts that it trained on, `units` what it did."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.units, self.sampled = root, UnitsHere(), []
        self.reserved: list[int] = []
        monkeypatch.setattr(stage, "run_units", self.units)
        monkeypatch.setattr(training, "run_in_one_process", self._train)

    def __call__(self, cluster: Any = NO_CLUSTER, **options: Any) -> Artifact:
        config = TokenizerConfig(root=str(self.root), name="t", corpus="a", **{"vocab_size": 320} | options)
        return stage.run(config, cluster)

    def _train(self, function: Callable[..., bytes], *arguments: Any, memory_bytes: int, **_: Any) -> bytes:
        _, folder, sample = arguments
        self.sampled = list(training._sampled_texts(folder, sample))
        self.reserved.append(memory_bytes)
        return function(*arguments)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(corpus_pieces, "UNIT_BYTES", (20_000,))
    monkeypatch.setattr(sample_worker, "_BATCH_DOCUMENTS", 5)  # of 16 in a row group
    return Run(tmp_path, monkeypatch)


def report_of(artifact: Artifact) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(artifact.read("report.json"))
    return report


def test_the_sample_has_the_shares_that_were_asked_for(run: Run, tmp_path: Path) -> None:
    rows = [row for row in make_corpus(tmp_path) if row["split"] == "train"]
    made = run(sample_bytes=60_000, seed=5, source_weights=("web=1", "code/x=1,y.py=2", "web/de=1"))
    expected, sources = (
        [],
        {"web/en/a.jsonl": "web", "web/de/b.jsonl": "web/de", "code/x=1,y.py": "code/x=1,y.py"},
    )
    said = {row["source"]: row for row in report_of(made)["sample"]["sources"]}
    for source, name in sources.items():
        inside = [row for row in rows if row["source"] == source]
        there = sum(map(text_bytes, inside))
        share = 60_000 * (2 if name.startswith("code") else 1) / 4
        taken = [row for row in inside if is_heldout(f"sample/{row['id']}", 5, share / there)]
        expected += taken
        assert (said[name]["bytes_there"], said[name]["documents"]) == (there, len(taken))
        assert said[name]["bytes"] == sum(map(text_bytes, taken)) == pytest.approx(share, rel=0.3)
    assert sorted(run.sampled) == sorted(row["text"] for row in expected)
    assert made.counts["sampled_bytes"] == sum(map(text_bytes, expected))
    assert made.counts["sampled_documents"] == len(expected)


def test_of_conversations_every_message_is_a_text(run: Run, tmp_path: Path) -> None:
    rows = make_conversations(tmp_path)

    def said(some: list[dict[str, Any]]) -> list[str]:
        return [message["content"] for row in some for message in row["messages"]]

    made = run()
    assert run.sampled == said([row for row in rows if row["split"] == "train"])
    measured = said([row for row in rows if row["split"] == "heldout"])
    assert report_of(made)["total"]["bytes"] == sum(len(text.encode()) for text in measured)

    weighted = run(sample_bytes=8_000, source_weights=("a=3", "b=1"))
    expected = []
    for source, share in {"a": 6_000, "b": 2_000}.items():
        inside = [row for row in rows if (row["split"], row["source"]) == ("train", source)]
        there = sum(map(text_bytes, inside))
        assert there > share
        expected += said([row for row in inside if is_heldout(f"sample/{row['id']}", 0, share / there)])
    assert sorted(run.sampled) == sorted(expected)
    assert weighted.counts["sampled_documents"] == len(expected)


def test_a_larger_share_has_the_documents_of_a_smaller_one_and_at_most_all(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_corpus(tmp_path)
    web = {row["text"] for row in rows if row["source"].startswith("web/") and row["split"] == "train"}
    run(sample_bytes=40_000, source_weights=("web=1", "code=3"))
    small = web & set(run.sampled)
    assert "less than its share" not in capsys.readouterr().out
    run(sample_bytes=40_000, source_weights=("web=3", "code=1"))
    large = web & set(run.sampled)
    assert small < large < web
    run(sample_bytes=40_000_000, source_weights=("web=3", "code=1"))
    assert web & set(run.sampled) == web
    assert len(run.sampled) == len(set(run.sampled))
    assert re.search("t: web has .* less than its share", capsys.readouterr().out)


def test_an_unknown_source_is_named_with_those_that_there_are(run: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path)
    with pytest.raises(UserError, match=r"--source-weights wep: .* it has code, notes\.txt, web$"):
        run(source_weights=("web=1", "wep=1"))


@pytest.mark.parametrize("normalization", ["lossless", "nmt_nfkc"])
def test_the_report_is_that_of_a_plain_loop_over_the_held_out_documents(
    run: Run, tmp_path: Path, normalization: str
) -> None:
    rows = [row for row in make_corpus(tmp_path) if row["split"] == "heldout"]
    made = run(normalization=normalization, source_weights=("web/de=1", "code=1"))
    tokenizer, report = SentencePieceTokenizer(made.read("tokenizer.model")), report_of(made)
    used: set[int] = set()
    expected: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        ids = tokenizer.encode(row["text"])
        used.update(ids)
        in_bytes = sum(8 <= id < 264 for id in ids)
        counts = [1, text_bytes(row), len(row["text"].split()), len(ids), in_bytes, 0]
        source = "web/de" if "/de/" in row["source"] else row["source"].split("/")[0]
        for key in (("all", ""), ("source", source), ("language", row["language"] or "unknown")):
            expected[key] = [a + b for a, b in zip(expected.get(key, [0] * 6), counts, strict=True)]
    fields = ("documents", "bytes", "words", "tokens", "byte_tokens", "round_trip_failures")
    found = {("all", ""): report["total"]}
    found |= {(title, row[title]): row for title in ("source", "language") for row in report[f"{title}s"]}
    assert {key: [row[field] for field in fields] for key, row in found.items()} == expected
    assert report["measured_on"] == "held-out documents"
    assert report["total"]["bytes_per_token"] == round(expected["all", ""][1] / expected["all", ""][3], 4)
    assert report["pieces"] == tokenizer.vocab_size - 264
    assert report["unused_pieces"] == report["pieces"] - len({id for id in used if id >= 264})


def test_the_report_is_the_same_for_any_number_of_units(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path)
    monkeypatch.setattr(stage, "REPORT_UNIT_BYTES", 10_000)
    many = run().folder.read("manifest.json")
    assert sum(unit.startswith("report-") for unit in run.units.ran) > 3
    run.units.ran.clear()
    monkeypatch.setattr(corpus_pieces, "UNIT_BYTES", (10**9,))
    monkeypatch.setattr(stage, "REPORT_UNIT_BYTES", 10**9)
    assert run(force=True).folder.read("manifest.json") == many
    assert sum(unit.startswith("report-") for unit in run.units.ran) == 1


def test_without_held_out_documents_some_of_the_sample_are_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path, heldout=0.0, language=False)
    monkeypatch.setattr(stage, "REPORT_BYTES", 20_000)
    report = report_of(run(sample_bytes=100_000))
    assert report["measured_on"] == "documents of the sample"
    assert report["total"]["bytes"] == pytest.approx(20_000, rel=0.3)
    assert report["languages"] == []


def test_show_prints_the_report(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(tmp_path)
    report = report_of(run(source_weights=("web=1",)))
    capsys.readouterr()
    show.run(show.ShowConfig(artifact="tokenizers/t", root=str(tmp_path)))
    said = " ".join(capsys.readouterr().out.split())
    assert f"{report['total']['bytes_per_token']:.2f}" in said
    assert all(f"source {name}" in said for name in ("web", "code", "notes.txt"))
    assert "language de" in said
    assert f"{report['unused_pieces']} of 56 pieces" in said


def test_too_much_text_is_refused_before_any_is_read(run: Run, tmp_path: Path) -> None:
    make_corpus(tmp_path)
    small = SimpleNamespace(connect=lambda: None, largest_memory_bytes=10 * 2**20)
    with pytest.raises(UserError, match=r"bpe tokenizer on .* takes up to .* no node has more than 10.0 MiB"):
        run(cluster=small)
    assert run.units.ran == []


def test_a_run_that_was_killed_does_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path)
    options = {"source_weights": ("web=1", "code=1")}
    whole = run(**options).folder.read("manifest.json")
    ran = len(run.units.ran)
    run.units.ran.clear()
    assert run(**options).folder.read("manifest.json") == whole
    assert run.units.ran == []

    drafts: list[Draft] = []

    def die(draft: Draft, **_: Any) -> None:
        drafts.append(draft)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            run(**options, force=True)
    drafts[0].close()
    assert len(run.units.ran) == ran
    lost = run.units.ran[-1]
    drafts[0].ledger.forget([lost])
    run.units.ran.clear(), run.reserved.clear()
    made = run(**options)
    assert run.units.ran == [lost]
    assert run.reserved == []  # not trained again
    assert made.folder.read("manifest.json") == whole
    assert list(verify(made)) == []
    assert not any(name.startswith(f"{SAMPLE_FOLDER}/") for name in made.folder.files())
