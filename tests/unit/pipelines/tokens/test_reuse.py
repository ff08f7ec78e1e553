"""When text is added to a corpus, only the new text is tokenized, with the result of doing all of it."""

import uuid
from types import SimpleNamespace

import pytest

from cluster.artifacts.local_storage import LocalStorage
from cluster.artifacts.manifest import verify
from cluster.artifacts.store import ArtifactStore
from llm.tokenizer.sentence_piece import MODEL_FILE
from pipelines import corpus_pieces
from pipelines.corpus import stage as corpus_stage
from pipelines.corpus.config import CorpusConfig
from pipelines.tokenizer import stage as tokenizer_stage
from pipelines.tokenizer import training
from pipelines.tokenizer.config import TokenizerConfig
from pipelines.tokens import stage as tokens_stage
from pipelines.tokens.config import TokensConfig
from pipelines.tokens.reuse import encoding_units
from tests.object_storage import BUCKET
from tests.unit.pipelines.units_here import NO_CLUSTER, UnitsHere


@pytest.fixture
def units(monkeypatch):
    """Ids of the units that ran, of tokens only."""
    monkeypatch.setattr(corpus_pieces, "UNIT_BYTES", (4_000,))
    monkeypatch.setattr(corpus_stage, "run_units", UnitsHere())
    monkeypatch.setattr(tokenizer_stage, "run_units", UnitsHere())
    monkeypatch.setattr(
        training, "run_in_one_process", lambda function, *arguments, **options: function(*arguments)
    )
    here = UnitsHere()
    monkeypatch.setattr(tokens_stage, "run_units", here)
    return here.ran


def write_texts(folder, names):
    folder.mkdir(exist_ok=True)
    for length, name in enumerate(names):
        lines = (f"{name} {number} says {number * length}\n" for number in range(500))
        (folder / f"{name}.txt").write_text("".join(lines))


@pytest.fixture
def texts(tmp_path):
    write_texts(tmp_path / "texts", "abcdef")
    return tmp_path / "texts"


def tokenize(root, texts, **options):
    common = {"root": str(root), "name": "a"}
    corpus_stage.run(CorpusConfig(**common, paths=(str(texts),), heldout_fraction=0.3), NO_CLUSTER)
    if not ArtifactStore(root).newest("tokenizers", "a"):
        tokenizer_stage.run(TokenizerConfig(**common, corpus="a", vocab_size=300), NO_CLUSTER)
    tokens = TokensConfig(**common, corpus="a", tokenizer="a", workers=1, **options)
    return tokens_stage.run(tokens, NO_CLUSTER)


def test_only_new_text_is_tokenized(units, texts, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tokens_stage.console, "print", lambda text, **_: said.append(text))
    first = tokenize(tmp_path / "root", texts)
    of_first = units.copy()
    units.clear()
    write_texts(texts, "xyz")
    both = tokenize(tmp_path / "root", texts)
    assert len(of_first) > 3
    assert len(units) >= 3
    assert not set(units) & set(of_first)
    assert f"a: {len(of_first)} of {len(of_first) + len(units)} units are those of {first.ref}" in said
    assert list(verify(both)) == []

    of_more = units.copy()
    (tmp_path / "root" / first.ref / "manifest.json").unlink()
    (tmp_path / "root" / both.ref / "manifest.json").unlink()
    (tmp_path / "root" / "tokens/a").rename(tmp_path / "elsewhere")
    units.clear()
    alone = tokenize(tmp_path / "root", texts)
    assert set(units) == {*of_first, *of_more}
    assert alone.manifest == both.manifest, "as if there had been nothing to take over"


def test_with_force_or_another_tokenizer_all_is_made_anew(units, texts, tmp_path):
    root = tmp_path / "root"
    first = tokenize(root, texts)
    of_first = units.copy()
    units.clear()
    assert tokenize(root, texts, force=True).manifest == first.manifest
    assert units == of_first
    units.clear()
    other = TokenizerConfig(root=str(root), name="a", corpus="a", vocab_size=310)
    tokenizer_stage.run(other, NO_CLUSTER)
    tokenize(root, texts)
    assert len(units) == len(of_first)
    assert not set(units) & set(of_first)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.unlink()
    file.write_bytes(content)


def shorten(file):
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-2])


@pytest.mark.parametrize("damage", [flip_a_bit, shorten, lambda file: file.unlink()])
def test_a_shard_that_is_damaged_is_not_taken_over(units, texts, tmp_path, damage):
    first = tokenize(tmp_path / "root", texts)
    of_first = units.copy()
    units.clear()
    shard = next(name for name in first.files if name.endswith(".tok"))
    damage(tmp_path / "root" / first.ref / shard)
    [problem] = verify(first)
    assert shard in problem, "one flipped bit is found, and its shard named"
    write_texts(texts, "xyz")
    both = tokenize(tmp_path / "root", texts)
    [anew] = set(units) & set(of_first)
    assert shard.partition("part-")[2].startswith(anew.removeprefix("encode-"))
    assert list(verify(both)) == []


def test_a_run_that_ended_while_it_took_over_goes_on(units, texts, tmp_path, monkeypatch):
    tokenize(tmp_path / "root", texts)
    of_first = units.copy()
    write_texts(texts, "xyz")
    units.clear()
    copies = []

    def dies(self, key, new_key, copy=LocalStorage.copy):
        copies.append(key)
        if len(copies) == 3:
            raise OSError("the machine goes down")
        copy(self, key, new_key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "copy", dies)
        with pytest.raises(OSError, match="goes down"):
            tokenize(tmp_path / "root", texts)
    for lease in (tmp_path / "root" / "tokens/a").rglob(".leases/*.json"):
        lease.unlink()
    both = tokenize(tmp_path / "root", texts)
    assert not set(of_first) & set(units)
    assert list(verify(both)) == []
    assert [path.name for path in (tmp_path / "root" / both.ref).rglob(".*.partial")] == []


def test_in_a_bucket_shards_are_taken_over_unless_they_are_cut_short_or_gone(
    units, texts, tmp_path, object_storage, monkeypatch
):
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MANTA_CACHE", str(tmp_path / "cache"))
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    first = tokenize(root, texts)
    of_first = units.copy()
    units.clear()
    shards = sorted(name for name in first.files if name.startswith("train/") and name.endswith(".tok"))
    short, gone = shards[:2]
    first.folder.write(short, first.folder.read(short)[:-2])
    first.folder.delete([gone])
    write_texts(texts, "xyz")
    both = tokenize(root, texts)
    assert {f"encode-{name.split('-')[1]}" for name in (short, gone)} == set(units) & set(of_first)
    assert list(verify(both)) == []
    assert tokenize(root, texts, force=True).manifest == both.manifest, "as from scratch"


def test_pieces_of_equal_content_are_units_of_their_own():
    artifact = SimpleNamespace(files={name: {"sha256": "5e" * 32} for name in ("a", "b", MODEL_FILE)})
    pieces = [corpus_pieces.CorpusPiece(file, 0, 1, 10) for file in ("a", "b")]
    first, second = encoding_units(artifact, pieces, artifact, 1)
    assert second.id == f"{first.id}.2"


def test_a_damaged_predecessor_is_left_alone(units, texts, tmp_path):
    root = tmp_path / "root"
    first = tokenize(root, texts)
    of_first = units.copy()
    units.clear()
    (root / first.ref / "shards.json").write_bytes(b"{}")
    write_texts(texts, "xyz")
    both = tokenize(root, texts)
    assert set(units) > set(of_first)
    assert list(verify(both)) == []
