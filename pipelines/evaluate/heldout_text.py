"""Bits per byte of held-out text."""

import torch

from cluster.artifacts.manifest import Artifact
from llm.data.shards import TokenShards
from llm.evaluation.bits_per_byte import bits_per_byte
from llm.models.decoder import Decoder
from llm.models.load import load_model

WINDOWS_AT_A_TIME = 16


def heldout_bits_per_byte(model: Artifact, tokens: Artifact, windows: int, threads: int) -> float:
    """Of the model on `windows` windows of the held-out split, as long as the model takes."""
    torch.set_num_threads(threads)
    decoder, config = load_model(model.fetch())
    assert isinstance(decoder, Decoder)
    shards = TokenShards.open(tokens.fetch(), "heldout").check_files()
    masked = model.manifest["what"].get("document_mask", False)
    opening_id = shards.eos_id if masked else None
    return bits_per_byte(decoder, shards, config.max_seq_len, WINDOWS_AT_A_TIME, windows, opening_id)
