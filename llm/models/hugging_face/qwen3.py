"""Qwen3 (`Qwen3ForCausalLM`; Yang et al., 2025, arXiv:2505.09388): queries and keys are normalised."""

from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face import llama
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """Every layer sees all tokens before, and nothing has a bias."""
    layers = fields.number("num_hidden_layers")
    fields.require(attention_bias=False, use_sliding_window=False, layer_types=["full_attention"] * layers)
    return llama.rotary_fields(fields, head_dim=128)


def their_config(config: ModelConfig) -> dict[str, Any]:
    """As Llama's, but for what only that one has."""
    return {"model_type": "qwen3"} | llama.their_rotary_fields(config) | {"attention_bias": False}


QWEN3 = Family(
    architectures={"qwen3": "Qwen3ForCausalLM"},
    required=lambda config: {},
    our_config=our_config,
    their_config=their_config,
    pairs=llama.pairs,
    same=llama.same,
    always=llama.ROTARY_DECODER | {"qk_norm": True, "bias": False, "sliding_window": None},
    unused=llama.UNUSED,
)
