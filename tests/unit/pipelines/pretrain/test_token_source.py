"""Where a pre-training run reads from, and what it refuses before anything starts."""

import json
import uuid
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.artifacts.folder import Folder
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import StorageError, UserError
from llm.data.shards import SHARDS_FILE, ShardWriter, shards_json
from pipelines.pretrain.config import PretrainConfig
from pipelines.pretrain.stage import reading_plan, resolve_inputs
from pipelines.pretrain.token_source import open_source
from pipelines.token_shards import Ranges, ranged_shards
from tests.object_storage import BUCKET

VOCAB = 300


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path)


def tokenizer(store, name="t"):
    draft = store.begin(
        kind="tokenizers", name=name, stage="made", logic_version=1, what={"n": name}, inputs={}
    )
    draft.write("tokenizer.model", name.encode())
    return draft.commit({})


def tokens(store, name, count, made_with) -> Artifact:
    model = made_with.read("tokenizer.model").decode()
    draft = store.begin(
        kind="tokens",
        name=name,
        stage="made",
        logic_version=1,
        what={"count": count},
        inputs={"tokenizer": made_with},
    )
    splits = {}
    for split, some in (("train", count), ("heldout", 12 if name != "math" else 0)):
        with draft.writing() as writing, ShardWriter(writing.path, split, "0", VOCAB, 3) as writer:
            if some:
                writer.add(np.arange(some - 1) % 290 + 4, some)
        splits[split] = writer.shards
    draft.write(SHARDS_FILE, shards_json(VOCAB, model, 3, splits))
    return draft.commit({})


def config(store, **changes):
    fields = {"root": str(store.root), "model": {"preset": "tiny-100k"}, "seq_len": 8, "global_batch": 4}
    return PretrainConfig(**{**fields, "tokens": "web=3,math=1", "steps": 10, **changes})


@pytest.fixture
def three(store):
    made_with = tokenizer(store)
    for name, count in (("web", 200), ("code", 170), ("math", 40)):
        tokens(store, name, count, made_with)
    return store


def test_a_mixture_is_read_as_its_weights_say(three):
    asked = config(three)
    inputs = resolve_inputs(asked, three)
    assert {role: artifact.name for role, artifact in inputs.items()} == {"tokens": "web", "tokens-2": "math"}
    source = open_source(asked, inputs)
    assert list(source.heldout) == ["web"], "the other one has none"
    assert source.loader.order.epochs(40) == [30 / 25, 10 / 5]
    rows = source.loader.batch(0, 100)
    assert np.array_equal(rows, open_source(asked, inputs).loader.batch(0, 100))


def test_shards_read_by_ranges_are_the_same(three):
    inputs = resolve_inputs(config(three, tokens="web"), three)
    here, far = (
        open_source(config(three, tokens="web"), inputs).loader,
        ranged_shards(inputs["tokens"], "train"),
    )
    assert far.fingerprint == here.shards.fingerprint
    assert np.array_equal(far.read(0, 5, 20), here.shards.read(0, 5, 20))
    file = inputs["tokens"].folder.local / far.names[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StorageError, match="it ends too early; `manta verify`"):
        far.read(0, 45, 20)
    file.rename(file.with_suffix(".away"))
    with pytest.raises(StorageError, match="it is missing; `manta verify`"):
        far.read(0, 0, 20)
    file.with_suffix(".away").rename(file)
    with pytest.raises(UserError, match=r"tokens/web/.* has 100 bytes, shards\.json says 400"):
        open_source(config(three, tokens="web"), inputs)


def test_ranges_out_of_a_bucket_are_asked_for_again_where_they_fail(object_storage, monkeypatch):
    for name, value in object_storage.environment().items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    artifact = tokens(store, "web", 200, tokenizer(store))
    folder, name = artifact.folder, "train/part-0-0.tok"
    content, ranges = folder.read(name), Ranges(artifact)
    with monkeypatch.context() as patch:
        patch.setattr(type(folder.storage), "read_range", None)  # it is not needed
        assert ranges.read(name, 10, 40) == content[10:50]
    with monkeypatch.context() as patch:
        refusing = SimpleNamespace(read_at=refuse, size=lambda: len(content))
        patch.setattr(Folder, "open", lambda *_: refusing)
        for _ in range(2):
            assert ranges.read(name, 10, 40) == content[10:50]
            ranges = Ranges(artifact)
    folder.write(name, content[:30])
    with pytest.raises(StorageError, match="has 30 bytes, the manifest says 400; `manta verify`"):
        ranges.read(name, 0, 10)
    folder.delete([name])
    with pytest.raises(StorageError, match="it is missing; `manta verify`"):
        ranges.read(name, 0, 10)


def refuse(*_):
    raise OSError("AWS Error ACCESS_DENIED: the token has expired")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tokens": "web=1,wbe=1"}, r"no tokens/wbe"),
        ({"seq_len": 64}, r"--seq-len 64: the largest shard of tokens/math/\w+ has 40 training tokens"),
        ({"tokens": "web=1,other=1"}, r"tokens/other/\w+ was made with tokenizers/t2/\w+, tokens/web/"),
        ({"tokens": "web=1,again=1"}, r"tokens/web/\w+ and tokens/again/\w+ are the same tokens; name one"),
    ],
)
def test_sources_that_do_not_fit_are_named(three, changes, problem):
    tokens(three, "other", 200, tokenizer(three, "t2"))
    tokens(three, "again", 200, three.resolve("tokenizers", "t"))
    with pytest.raises(UserError, match=problem) as seen:
        resolve_inputs(config(three, **changes), three)
    assert "\n" not in str(seen.value)


def test_it_says_how_often_each_source_is_read(three):
    def lines(**changes):
        asked = config(three, name="m", **changes)
        inputs = resolve_inputs(asked, three)
        roles = asked.sources.roles
        return reading_plan(
            asked, {name: ranged_shards(inputs[role], "train") for role, name in roles.items()}
        )

    assert lines(tokens="web", steps=25) == [], "four times: as good as new text"
    assert lines(tokens="web", steps=30)[0] == "m: web is read 4.80 times"
    assert lines(tokens="web=3,math=1; 50: code=1") == [
        "m: web is read 0.24 times",
        "m: math is read 0.40 times",
        "m: code is read 1.52 times",
        "m: another mixture after 64 tokens",
    ]


def test_an_old_form_is_refused_with_the_mend(three):
    artifact = three.resolve("tokens", "web")
    content = json.loads(artifact.read(SHARDS_FILE))
    content["splits"]["train"] = [{"tokens": 200}]
    made_with = three.resolve("tokenizers", "t")
    draft = three.begin(
        kind="tokens", name="old", stage="made", logic_version=0, what={}, inputs={"tokenizer": made_with}
    )
    draft.write(SHARDS_FILE, json.dumps(content).encode())
    draft.commit({})
    with pytest.raises(
        UserError, match=r"tokens/old/\w+: these tokens are of an older version; make them again"
    ):
        resolve_inputs(config(three, tokens="old"), three)
