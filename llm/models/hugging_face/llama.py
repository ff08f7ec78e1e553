"""Llama 2 and 3 (`LlamaForCausalLM`), and Mistral, which is a Llama with a sliding window.

The rotary halves agree with ours. Biases are either everywhere or nowhere.
"""

import json
from collections.abc import Callable
from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields, rope_fields, their_activation, their_rope_scaling
from llm.models.hugging_face.names import Pair, linear, qkv_rows

ROTARY_DECODER: dict[str, Any] = {
    "family": "decoder",
    "position": "rope",
    "norm": "rms",
    "norm_placement": "pre",
    "gated": True,
    "attention_scale": None,
    "scale_embeddings": False,
    "embedding_norm": False,
    "n_token_types": 0,
    "scale_logits": False,
    "n_experts": 0,
}
"""Fields of ours that Llama, Qwen3 and, but for its experts, Mixtral have in common."""
UNUSED = (r".*\.rotary_emb\.inv_freq",)


def required(config: ModelConfig) -> dict[str, Any]:
    """Heads share the width evenly; Mistral has no biases."""
    whole = config.n_heads if config.d_model % config.n_heads == 0 else "a divisor of d_model"
    return {"n_heads": whole} | ({"bias": False} if config.sliding_window else {})


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """The fields of ours that `required` leaves open. Raises Unsupported for what we do not have."""
    bias, window = fields.get("attention_bias", False), None
    if fields.get("mlp_bias", False) != bias:
        raise fields.refusal(
            "mlp_bias", not bias, f"with attention_bias {json.dumps(bias)} it must be the same"
        )
    if fields.values["model_type"] == "mistral":
        window = fields.values.get("sliding_window", 4096)
    return rotary_fields(fields) | {"bias": bias, "sliding_window": window}


def rotary_fields(fields: Fields, head_dim: int | None = None) -> dict[str, Any]:
    """Sizes, positions and head, as Llama and Qwen3 name them.

    head_dim: where the file does not say; by default the heads share the width.
    """
    d_model, n_heads = fields.number("hidden_size"), fields.number("num_attention_heads")
    max_seq_len = fields.number("max_position_embeddings")
    rope_theta, rope_scaling = rope_fields(fields, max_seq_len)
    return {
        "vocab_size": fields.number("vocab_size"),
        "d_model": d_model,
        "n_layers": fields.number("num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": fields.number("num_key_value_heads", n_heads),
        "head_dim": fields.number("head_dim", head_dim or d_model // n_heads),
        "d_ff": fields.number("intermediate_size"),
        "max_seq_len": max_seq_len,
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "activation": fields.activation("hidden_act", "silu"),
        "tie_embeddings": fields.get("tie_word_embeddings", False),
    }


def their_config(config: ModelConfig) -> dict[str, Any]:
    """A Mistral's if there is a sliding window."""
    if config.sliding_window:
        return {"model_type": "mistral", "sliding_window": config.sliding_window} | their_rotary_fields(
            config
        )
    biases = {"attention_bias": config.bias, "mlp_bias": config.bias}
    return {"model_type": "llama"} | their_rotary_fields(config) | biases


def their_rotary_fields(config: ModelConfig) -> dict[str, Any]:
    """Sizes, positions and head, as Llama and Qwen3 name them."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "rope_theta": config.rope_theta,
        "rope_scaling": their_rope_scaling(config.rope_scaling),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": their_activation(config.activation),
    }


def feed_forward(ours: str, theirs: str, config: ModelConfig) -> list[Pair]:
    """Of the block `ours`, which is the layer `theirs`."""
    gate_up = (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
    return [
        *linear(f"{ours}.mlp.gate_up", *gate_up, bias=config.bias, rows=(config.d_ff, config.d_ff)),
        *linear(f"{ours}.mlp.down", f"{theirs}.mlp.down_proj", bias=config.bias),
    ]


def pairs(
    config: ModelConfig, network: Callable[[str, str, ModelConfig], list[Pair]] = feed_forward
) -> list[Pair]:
    """All parameters; `network` has those of a block's feed-forward network."""
    vocab, bias = config.vocab_size, config.bias
    found = [Pair("embed.weight", ("model.embed_tokens.weight",), vocabulary=vocab)]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        projections = [f"{attention}.{each}_proj" for each in "qkv"]
        found += [
            *linear(f"{ours}.attention_norm", f"{theirs}.input_layernorm", bias=False),
            *linear(f"{ours}.attention.qkv", *projections, bias=bias, rows=qkv_rows(config)),
            *linear(f"{ours}.attention.out", f"{attention}.o_proj", bias=bias),
            *linear(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm", bias=False),
            *network(ours, theirs, config),
        ]
        if config.qk_norm:
            found += linear(f"{ours}.attention.q_norm", f"{attention}.q_norm", bias=False)
            found += linear(f"{ours}.attention.k_norm", f"{attention}.k_norm", bias=False)
    found += linear("norm", "model.norm", bias=False)
    if not config.tie_embeddings:
        found.append(Pair("head.weight", ("lm_head.weight",), vocabulary=vocab))
    return found


def same(config: ModelConfig) -> dict[str, str]:
    """A tied head may be written out."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}


LLAMA = Family(
    architectures={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
    required=required,
    our_config=our_config,
    their_config=their_config,
    pairs=pairs,
    same=same,
    always=ROTARY_DECODER | {"qk_norm": False},
    unused=UNUSED,
)
