"""Mixtral (`MixtralForCausalLM`; Jiang et al., 2024, arXiv:2401.04088): a Mistral of experts.

Its router is ours: a softmax over all experts, and the chosen probabilities over their sum. How a router is
kept fair in training is not: transformers takes all blocks and rows together, so `router_aux_loss_coef` says
nothing of our coefficients, which keep their defaults.
"""

from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face import llama
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields
from llm.models.hugging_face.names import Pair, linear

_DEFAULTS = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
"""Theirs, where they are not Llama's."""


def required(config: ModelConfig) -> dict[str, Any]:
    """There are experts."""
    return {"n_experts": config.n_experts or "some"}


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """The fields of ours that are not the same in all the family."""
    fields = Fields(_DEFAULTS | fields.values, fields.file)
    return llama.rotary_fields(fields) | {
        "n_experts": fields.number("num_local_experts", 8),
        "experts_per_token": fields.number("num_experts_per_tok", 2),
        "sliding_window": fields.get("sliding_window", None),
    }


def their_config(config: ModelConfig) -> dict[str, Any]:
    """As Mistral's, and the experts."""
    return (
        {"model_type": "mixtral"}
        | llama.their_rotary_fields(config)
        | {
            "num_local_experts": config.n_experts,
            "num_experts_per_tok": config.experts_per_token,
            "sliding_window": config.sliding_window,
        }
    )


def experts(ours: str, theirs: str, config: ModelConfig) -> list[Pair]:
    """Of the block `ours`: the router, and matrices of each expert, which are w1, w3 (gate, up) and w2."""
    moe = f"{theirs}.block_sparse_moe"
    each = [f"{moe}.experts.{expert}" for expert in range(config.n_experts)]
    gate_up = tuple(f"{name}.{matrix}.weight" for name in each for matrix in ("w1", "w3"))
    down = tuple(f"{name}.w2.weight" for name in each)
    return [
        *linear(f"{ours}.mlp.router", f"{moe}.gate", bias=False),
        Pair(f"{ours}.mlp.gate_up.weight", gate_up, (config.d_ff,) * len(gate_up), stacked=True),
        Pair(f"{ours}.mlp.down.weight", down, (config.d_model,) * len(down), stacked=True),
    ]


MIXTRAL = Family(
    architectures={"mixtral": "MixtralForCausalLM"},
    required=required,
    our_config=our_config,
    their_config=their_config,
    pairs=lambda config: llama.pairs(config, experts),
    same=llama.same,
    always={name: value for name, value in llama.ROTARY_DECODER.items() if name != "n_experts"}
    | {"qk_norm": False, "bias": False},
    unused=llama.UNUSED,
)
