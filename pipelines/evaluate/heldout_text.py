"""Bits per byte of held-out text, computed where Ray has room."""

from pathlib import Path

import ray
import torch

from llm.data.shards import TokenShards
from llm.evaluation.bits_per_byte import bits_per_byte
from llm.models.decoder import Decoder
from llm.models.load import load_model

WINDOWS_AT_A_TIME = 16


@ray.remote
def heldout_bits_per_byte(model_path: Path, tokens: Path, windows: int, threads: int) -> float:
    """Of the model on `windows` windows of the held-out split, as long as the model takes."""
    torch.set_num_threads(threads)
    model, config = load_model(model_path)
    assert isinstance(model, Decoder)
    shards = TokenShards.open(tokens, "heldout")
    return bits_per_byte(model, shards, config.max_seq_len, WINDOWS_AT_A_TIME, windows)
