"""Bits per byte of held-out text."""

import torch

from cluster.artifacts.manifest import Artifact
from cluster.artifacts.store import ArtifactStore
from cluster.errors import UserError
from llm.evaluation.bits_per_byte import bits_per_byte
from llm.models.decoder import Decoder
from llm.models.load import load_model
from pipelines.token_shards import copied_shards

WINDOWS_AT_A_TIME = 16
_BEFORE = ("base", "model")
"""Role of the model that a stage changes: of fine-tuning, and of the others."""


def learned_documents_alone(store: ArtifactStore, model: Artifact) -> bool:
    """Whether the documents of a sequence did not see each other when the model, or the one that it was made
    from, was pre-trained. False if that one is not under the root any more.
    """
    while model.manifest["stage"] != "pretrain":
        inputs = model.manifest["inputs"]
        changed = [inputs[role]["ref"] for role in _BEFORE if role in inputs]
        try:
            model = store.resolve("models", changed[0])
        except (IndexError, UserError):
            return False
    return bool(model.manifest["what"].get("document_mask", False))


def heldout_bits_per_byte(
    model: Artifact, tokens: Artifact, windows: int, threads: int, documents_alone: bool
) -> float:
    """Of the model on `windows` windows of the held-out split, as long as the model takes."""
    torch.set_num_threads(threads)
    decoder, config = load_model(model.fetch())
    assert isinstance(decoder, Decoder)
    shards = copied_shards(tokens, "heldout")
    opening_id = shards.eos_id if documents_alone else None
    return bits_per_byte(decoder, shards, config.max_seq_len, WINDOWS_AT_A_TIME, windows, opening_id)
