"""Model directories: `config.json` (shape and head) and `weights.safetensors` (our parameter names, fp32)."""

import json
import os
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.models.config import Family, ModelConfig
from llm.models.decoder import Decoder
from llm.models.encoder_decoder import EncoderDecoder
from llm.models.heads import DecoderWithScalar
from llm.models.masked_lm import MaskedLM

Head = Literal["lm", "scalar"]
HEADS = ("lm", "scalar")
LanguageModel = Decoder | EncoderDecoder | MaskedLM
LANGUAGE_MODELS: dict[Family, type[LanguageModel]] = {
    "decoder": Decoder,
    "encoder-decoder": EncoderDecoder,
    "encoder": MaskedLM,
}


def build(config: ModelConfig, head: Head = "lm") -> LanguageModel | DecoderWithScalar:
    """The module on the meta device: no memory, no values. Follow with `to_empty` and weights."""
    with torch.device("meta"):
        return DecoderWithScalar(config) if head == "scalar" else LANGUAGE_MODELS[config.family](config)


def save_model(path: Path, state: dict[str, Tensor], config: ModelConfig, head: Head = "lm") -> None:
    """Write config.json and weights.safetensors into `path`, each whole or not at all."""
    path.mkdir(parents=True, exist_ok=True)
    save_config(path, config, head)
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    partial = path / f".weights.{os.getpid()}.partial"
    save_file(tensors, partial)
    os.replace(partial, path / "weights.safetensors")


def save_config(path: Path, config: ModelConfig, head: Head = "lm") -> None:
    """Write config.json alone, as a training run does before it has weights."""
    partial = path / f".config.{os.getpid()}.partial"
    partial.write_bytes(config_json(config, head))
    os.replace(partial, path / "config.json")


def config_json(config: ModelConfig, head: Head = "lm") -> bytes:
    """The content of config.json."""
    return (json.dumps({"head": head} | config.model_dump(), indent=2) + "\n").encode()


def load_config(path: Path) -> tuple[ModelConfig, Head]:
    """The shape and the head named in `path`/config.json."""
    fields = json.loads((path / "config.json").read_text())
    head = fields.pop("head")
    if head not in HEADS:
        raise ValueError(f"{path / 'config.json'}: head {head!r} is none of {', '.join(HEADS)}")
    return ModelConfig(**fields), head


def load_state(path: Path) -> dict[str, Tensor]:
    """The fp32 weights of a model directory by parameter name, on the CPU."""
    return load_file(path / "weights.safetensors")


def load_model(
    path: Path, device: str | torch.device = "cpu"
) -> tuple[LanguageModel | DecoderWithScalar, ModelConfig]:
    """The module with its weights, in fp32 on `device`, in eval mode. Raises if names or shapes differ."""
    config, head = load_config(path)
    model = build(config, head).to_empty(device=device)
    model.load_state_dict(load_state(path))
    return model.eval(), config
