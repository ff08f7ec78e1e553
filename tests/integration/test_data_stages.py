"""Corpus, tokenizer and tokens on a private Ray: one result for any number of workers, kills and reruns."""

import gzip
import json
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import zstandard

import pipelines.corpus.inputs
import pipelines.corpus_pieces
from cluster.connect import Cluster, start_local
from cluster.errors import UserError
from llm.data.shards import TokenShards, document_ends
from llm.text.identity import content_id
from llm.text.python_stdlib import stdlib_files
from llm.tokenizer.load import load_tokenizer
from pipelines.corpus import stage as corpus_stage
from pipelines.corpus.config import CorpusConfig
from pipelines.tokenizer import stage as tokenizer_stage
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokens import stage as tokens_stage
from pipelines.tokens.config import TokensConfig

CLUSTER = Cluster()


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start_local(num_cpus=3)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Forty files of the standard library in a folder, as text, JSON lines (.gz, .zst) and Parquet."""
    folder = tmp_path_factory.mktemp("sources")
    root, files = stdlib_files()
    texts = {path.name: path.read_text() for path in files if path.parent == root}
    names = sorted(texts, key=lambda name: len(texts[name]))[60:100]
    for name in names[:20]:
        (folder / name).write_text(texts[name])
    lines = [json.dumps({"text": texts[name]}) + "\n" for name in names]
    (folder / "a.jsonl").write_text("".join(lines[20:26]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[26:30]).encode()))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress("".join(lines[30:34]).encode()))
    rest = pa.table({"text": [texts[name] for name in names[34:]]})
    pq.write_table(rest, folder / "d.parquet", row_group_size=2)
    # Two duplicates in other files, three documents to remove, and a file that is no source.
    (folder / "z_copy.py").write_text(texts[names[3]])
    (folder / "z_copies.jsonl").write_text(lines[34].replace("\\n", "\\r\\n"))
    (folder / "z_empty.txt").write_text(" \n")
    (folder / "z_short.txt").write_text("tiny")
    (folder / "z_latin.txt").write_bytes(b"caf\xe9 in latin-1")
    (folder / "picture.bin").write_bytes(b"\0")
    return folder, [texts[name] for name in names]


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Many units out of little text; planning runs in this process."""
    monkeypatch.setattr(pipelines.corpus_pieces, "UNIT_BYTES", (20_000,))


def corpus_config(root, sources, **changes):
    options = {"root": str(root), "name": "code", "paths": (str(sources),), "min_chars": 10, "workers": 3}
    return CorpusConfig(**(options | changes))


def build(root, folder, workers):
    """The three stages, one after the other."""
    common = {"root": str(root), "name": "code", "workers": workers}
    corpus = corpus_stage.run(corpus_config(root, folder, workers=workers, heldout_fraction=0.3), CLUSTER)
    tokenizer_config = TokenizerConfig(**common, corpus="code", vocab_size=512, sample_bytes=120_000)
    tokenizer = tokenizer_stage.run(tokenizer_config, CLUSTER)
    tokens = tokens_stage.run(TokensConfig(**common, corpus="code", tokenizer="code"), CLUSTER)
    return corpus, tokenizer, tokens


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.corpus_pieces, "UNIT_BYTES", (20_000,))
        return build(tmp_path_factory.mktemp("three"), sources[0], workers=3)


def rows_of(corpus):
    return [row for path in sorted(corpus.fetch().glob("part-*")) for row in pq.read_table(path).to_pylist()]


def test_one_worker_makes_the_same_bytes_as_three(built, sources, tmp_path):
    alone = build(tmp_path, sources[0], workers=1)
    for first, second in zip(built, alone, strict=True):
        assert first.ref == second.ref
        assert len(first.manifest["files"]) > 1
        assert (first.fetch() / "manifest.json").read_bytes() == (
            second.fetch() / "manifest.json"
        ).read_bytes()


def test_corpus_holds_each_document_once_and_says_what_it_removed(built, sources):
    corpus, _, _ = built
    rows = rows_of(corpus)
    assert sorted(row["text"] for row in rows) == sorted(sources[1])
    assert all(row["id"] == content_id(row["text"]) for row in rows)
    removed = pq.read_table(corpus.fetch() / "removed.parquet").to_pylist()
    assert {(row["source"], row["reason"]) for row in removed} == {
        ("z_copy.py", "duplicate"),
        ("z_copies.jsonl", "duplicate"),
        ("z_empty.txt", "empty"),
        ("z_short.txt", "too_short"),
        ("z_latin.txt", "undecodable"),
    }
    kept = {row["id"] for row in rows}
    assert all(row["kept_id"] in kept for row in removed if row["reason"] == "duplicate")
    counts = corpus.manifest["counts"]
    assert counts["documents"] == 40 == counts["train_documents"] + counts["heldout_documents"]
    assert counts["heldout_documents"] == sum(row["split"] == "heldout" for row in rows) > 0
    assert counts["bytes"] == sum(len(text.encode()) for text in sources[1])
    assert not (corpus.fetch() / "work").exists()


def test_moving_and_touching_the_files_changes_nothing(built, sources, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in sources[0].iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
        os.utime(moved / path.name, (0, 0))
    config = corpus_config(built[0].fetch().parents[2], moved, heldout_fraction=0.3)
    again = corpus_stage.run(config, CLUSTER)
    assert again.ref == built[0].ref
    assert again.run() == built[0].run()  # not made again


def test_tokens_decode_to_the_corpus(built):
    corpus, tokenizer_artifact, tokens = built
    tokenizer = load_tokenizer(tokenizer_artifact.fetch())
    for split in ("train", "heldout"):
        shards = TokenShards.open(tokens.fetch(), split)
        texts = []
        for k, count in enumerate(shards.shard_tokens):
            documents = np.split(
                shards.read(k, 0, count), document_ends(tokens.fetch(), shards.names[k]).astype(int)[:-1]
            )
            assert all(document[-1] == tokenizer.eos_id for document in documents)
            texts += [tokenizer.decode(document.tolist()) for document in documents]
        assert texts == [row["text"] for row in rows_of(corpus) if row["split"] == split]
        assert shards.bytes == sum(len(text.encode()) for text in texts)
        assert shards.tokenizer == tokenizer.fingerprint
    assert tokens.manifest["counts"]["train_tokens"] == TokenShards.open(tokens.fetch(), "train").tokens


def test_tokenizer_trains_on_a_sample_of_the_training_split(built):
    corpus, tokenizer, _ = built
    counts = tokenizer.manifest["counts"]
    assert counts["vocab_size"] == 512 == load_tokenizer(tokenizer.fetch()).vocab_size
    assert 60_000 < counts["sampled_bytes"] < 200_000 < corpus.manifest["counts"]["train_bytes"]
    assert "\\n▁▁▁▁" in (tokenizer.fetch() / "tokenizer.vocab").read_text()


def test_the_tokenizer_is_measured_on_the_held_out_documents(built):
    corpus, tokenizer, tokens = (artifact.manifest["counts"] for artifact in built)
    report = json.loads(built[1].read("report.json"))
    assert report["total"]["documents"] == corpus["heldout_documents"] == tokens["heldout_documents"]
    assert report["total"]["bytes"] == corpus["heldout_bytes"]
    assert report["total"]["tokens"] == tokens["heldout_tokens"] - tokens["heldout_documents"]  # <eos>
    assert report["total"]["round_trip_failures"] == 0
    sources = {row["source"] for row in rows_of(built[0]) if row["split"] == "heldout"}
    assert {row["source"] for row in report["sources"]} == sources
    assert tokenizer["bytes_per_token"] == report["total"]["bytes_per_token"]


def test_a_sample_with_shares(built):
    options = {"root": str(built[0].fetch().parents[2]), "name": "shares", "corpus": "code", "workers": 2}
    options |= {"vocab_size": 400, "sample_bytes": 40_000}
    weighted = tokenizer_stage.run(
        TokenizerConfig(**options, source_weights=("a.jsonl=1", "d.parquet=1")), CLUSTER
    )
    sample = json.loads(weighted.read("report.json"))["sample"]
    train = [row for row in rows_of(built[0]) if row["split"] == "train"]
    there = Counter()
    for row in train:
        there[row["source"]] += len(row["text"].encode())
    assert {row["source"]: row["bytes_there"] for row in sample["sources"]} == {
        name: there[name] for name in ("a.jsonl", "d.parquet")
    }
    assert 0 < sample["bytes"] == sum(row["bytes"] for row in sample["sources"])


def test_a_killed_stage_does_only_what_is_missing(built, sources, tmp_path, monkeypatch):
    config = corpus_config(tmp_path, sources[0], heldout_fraction=0.3)
    run_all, make_parts, drafts = corpus_stage.run_units, corpus_stage.make_parts, []

    def run_some(units, worker, *arguments, **options):
        """Half of the last step's units, then die."""
        if worker.__name__ == "WriteWorker":
            run_all(units[: len(units) // 2], worker, *arguments, **options)
            raise KeyboardInterrupt
        return run_all(units, worker, *arguments, **options)

    def remember_draft(config, draft, *rest):
        drafts.append(draft)
        return make_parts(config, draft, *rest)

    monkeypatch.setattr(corpus_stage, "run_units", run_some)
    monkeypatch.setattr(corpus_stage, "make_parts", remember_draft)
    with pytest.raises(KeyboardInterrupt):
        corpus_stage.run(config, CLUSTER)
    monkeypatch.setattr(corpus_stage, "run_units", run_all)
    drafts[0].close()  # as the end of the process would
    draft = drafts[0].folder.local
    before = {path.name: path.stat().st_mtime_ns for path in draft.glob("part-*.parquet")}
    assert len(before) >= 3

    corpus = corpus_stage.run(config, CLUSTER)
    assert corpus.manifest == built[0].manifest
    assert all((draft / name).stat().st_mtime_ns == changed for name, changed in before.items())
    assert not (draft / "ledger").exists()


def test_a_bad_line_is_named_and_the_rest_is_finished(sources, tmp_path):
    lines = [json.dumps({"text": f"good line {i} " * 200}) for i in range(40)]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:30], "{oops", *lines[30:]]))
    config = corpus_config(tmp_path / "root", tmp_path / "bad.jsonl")
    with pytest.raises(
        UserError, match=r"code: read: 1 of \d units failed .*bad\.jsonl:31: not a JSON value"
    ):
        corpus_stage.run(config, CLUSTER)
    done = list((tmp_path / "root/corpora/code").glob("*/ledger/read-*"))
    assert (
        len(done) == len(pipelines.corpus.inputs.plan_units(pipelines.corpus.inputs.find_files(config))) - 1
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_field": "body"}, r"a\.jsonl:1: no text in field 'body', only text; choose with --text-field"),
        ({"paths": ("nowhere/*.txt",)}, "nowhere.*matches nothing"),
        ({"paths": ("SOURCES/picture.bin",)}, r"picture\.bin: the name does not say what it holds"),
        ({"format": "conversations", "paths": ("SOURCES/a.jsonl",)}, r"a\.jsonl:1: no conversation"),
        ({"min_chars": 10**9, "paths": ("SOURCES/*.py",)}, "all were removed"),
    ],
)
def test_mistakes_are_one_line_that_says_the_mend(sources, tmp_path, changes, message):
    if "paths" in changes:
        paths = (changes["paths"][0].replace("SOURCES", str(sources[0])),)
        changes = {**changes, "paths": paths}
    with pytest.raises(UserError, match=message) as raised:
        corpus_stage.run(corpus_config(tmp_path, sources[0], **changes), CLUSTER)
    assert "\n" not in str(raised.value)


def test_conversations_from_files_and_from_functions(built, tmp_path):
    root = built[0].fetch().parents[2]
    records = [
        {"prompt": f"question {i}", "response": f"answer {i % 7}", "group": f"g{i // 3}"} for i in range(30)
    ]
    records.append(
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
    )
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records, records[4]]))
    talk = corpus_stage.run(
        corpus_config(root, path, name="talk", format="conversations", heldout_fraction=0.3), CLUSTER
    )
    rows = rows_of(talk)
    assert len(rows) == 31
    assert talk.manifest["counts"]["format"] == "conversations"
    assert talk.manifest["counts"]["removed"] == {"duplicate": 1}
    assert rows[-1]["messages"] == records[-1]["messages"]
    by_group: dict[str, set[str]] = {}
    for row in rows:
        by_group.setdefault(row["group"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_group.values())

    functions = corpus_stage.run(
        CorpusConfig(root=str(root), name="chat", source="python-functions", from_corpus="code"), CLUSTER
    )
    documents = {row["id"]: row for row in rows_of(built[0])}
    for row in rows_of(functions):
        document = documents[row["group"]]
        assert (row["split"], row["source"]) == (document["split"], document["source"])
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        compile(f"{user['content']}\n{assistant['content']}", "function", "exec")
    with pytest.raises(UserError, match=r"chat.* holds conversations; tokens needs a corpus of plain text"):
        tokens_stage.resolve_inputs(
            TokensConfig(root=str(root), corpus="chat"), corpus_stage.ArtifactStore(root)
        )


def test_a_vocabulary_too_large_for_the_text_is_one_line(built):
    config = TokenizerConfig(
        root=str(built[0].fetch().parents[2]), name="big", corpus="code", vocab_size=900_000
    )
    with pytest.raises(UserError, match=r"too small for vocab_size 900000: it gives \d+ pieces; lower"):
        tokenizer_stage.run(config, CLUSTER)
