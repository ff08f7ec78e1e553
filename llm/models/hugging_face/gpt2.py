"""GPT-2 (`GPT2LMHeadModel`), and GPT-3's shapes. Their linear layers are `Conv1D`: weights are (in, out)."""

from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields, their_activation
from llm.models.hugging_face.names import Pair, linear


def required(config: ModelConfig) -> dict[str, Any]:
    """As many heads for keys as for queries, which share the width."""
    return {"n_kv_heads": config.n_heads, "head_dim": config.d_model / config.n_heads}


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """The plain decoder only."""
    fields.require(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    d_model, n_heads = fields.number("n_embd"), fields.number("n_head")
    return {
        "vocab_size": fields.number("vocab_size"),
        "d_model": d_model,
        "n_layers": fields.number("n_layer"),
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_ff": fields.number("n_inner", 4 * d_model),
        "max_seq_len": fields.number("n_positions", 1024),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "activation": fields.activation("activation_function", "gelu_new"),
        "tie_embeddings": fields.get("tie_word_embeddings", True),
    }


def their_config(config: ModelConfig) -> dict[str, Any]:
    """All of it."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_seq_len,
        "n_ctx": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new"
        if config.activation == "gelu_tanh"
        else their_activation(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
    }


def pairs(config: ModelConfig) -> list[Pair]:
    """All parameters."""
    vocab = config.vocab_size
    found = [
        Pair("embed.weight", ("transformer.wte.weight",), vocabulary=vocab),
        Pair("positions.weight", ("transformer.wpe.weight",)),
    ]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        found += [
            *linear(f"{ours}.attention_norm", f"{theirs}.ln_1", bias=True),
            *linear(f"{ours}.attention.qkv", f"{theirs}.attn.c_attn", bias=True, conv=True),
            *linear(f"{ours}.attention.out", f"{theirs}.attn.c_proj", bias=True, conv=True),
            *linear(f"{ours}.mlp_norm", f"{theirs}.ln_2", bias=True),
            *linear(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", bias=True, conv=True),
            *linear(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", bias=True, conv=True),
        ]
    found += linear("norm", "transformer.ln_f", bias=True)
    if not config.tie_embeddings:
        found.append(Pair("head.weight", ("lm_head.weight",), vocabulary=vocab))
    return found


def same(config: ModelConfig) -> dict[str, str]:
    """A tied head may be written out."""
    return {"lm_head.weight": "transformer.wte.weight"} if config.tie_embeddings else {}


GPT2 = Family(
    architectures={"gpt2": "GPT2LMHeadModel"},
    required=required,
    our_config=our_config,
    their_config=their_config,
    pairs=pairs,
    same=same,
    always={
        "family": "decoder",
        "position": "learned",
        "norm": "layer",
        "norm_placement": "pre",
        "gated": False,
        "bias": True,
        "qk_norm": False,
        "sliding_window": None,
        "attention_scale": None,
        "scale_embeddings": False,
        "embedding_norm": False,
        "n_token_types": 0,
        "scale_logits": False,
        "n_experts": 0,
    },
    unused=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    renamed=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
)
