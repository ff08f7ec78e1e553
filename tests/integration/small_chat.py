"""Small models made without their stages, for tests of alignment and evaluation."""

from pathlib import Path

from cluster.artifacts.draft import Draft
from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from llm.models.decoder import Decoder
from llm.models.heads import DecoderWithScalar
from llm.models.load import save_model
from llm.models.parameters import parameter_count
from llm.models.presets import model_config
from tests.integration.small_artifacts import VOCAB, small_store


def make_model(store: ArtifactStore, name: str, head: str, seed: int) -> Artifact:
    """models/NAME with weights drawn by `seed`: it speaks gibberish, but its own gibberish."""
    draft = store.begin(
        kind="models", name=name, stage="made", logic_version=1, what={"head": head, "seed": seed}, inputs={}
    )
    assert isinstance(draft, Draft)
    config = model_config("tiny-100k", vocab_size=VOCAB, max_seq_len=64)
    model = Decoder(config) if head == "lm" else DecoderWithScalar(config)
    model.init_weights(seed)
    with draft.writing() as writing:
        save_model(writing.path, model.state_dict(), config, head)
    draft.write("tokenizer.model", store.resolve("tokenizers", "small").folder.read("tokenizer.model"))
    return draft.commit({"parameters": parameter_count(config)})


def chat_store(root: Path, seed: int = 0) -> ArtifactStore:
    """A store with models/chat, models/reward and what they were made of."""
    store = small_store(root)
    make_model(store, "chat", "lm", seed)
    make_model(store, "reward", "scalar", seed + 1)
    return store
