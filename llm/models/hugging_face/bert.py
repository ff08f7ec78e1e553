"""BERT with its masked-LM head (`BertForMaskedLM`). Pooler and next-sentence head are left out."""

from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields
from llm.models.hugging_face.names import Pair, linear, qkv_rows


def required(config: ModelConfig) -> dict[str, Any]:
    """As many heads for keys as for queries, which share the width; at least one token type."""
    heads = {"n_kv_heads": config.n_heads, "head_dim": config.d_model / config.n_heads}
    return heads | {"n_token_types": max(config.n_token_types, 1)}


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """The plain encoder only, whose head is its embedding table."""
    fields.require(
        is_decoder=False,
        add_cross_attention=False,
        position_embedding_type="absolute",
        tie_word_embeddings=True,
        hidden_act="gelu",
    )
    n_heads = fields.number("num_attention_heads")
    return {
        "vocab_size": fields.number("vocab_size"),
        "d_model": fields.number("hidden_size"),
        "n_layers": fields.number("num_hidden_layers"),
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_ff": fields.number("intermediate_size"),
        "max_seq_len": fields.number("max_position_embeddings", 512),
        "n_token_types": fields.number("type_vocab_size", 2),
        "norm_eps": fields.number("layer_norm_eps", 1e-12),
    }


def their_config(config: ModelConfig) -> dict[str, Any]:
    """All of it."""
    return {
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": config.n_token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


def pairs(config: ModelConfig) -> list[Pair]:
    """All parameters."""
    vocab, embeddings, head = config.vocab_size, "bert.embeddings", "cls.predictions"
    found = [
        Pair("embed.weight", (f"{embeddings}.word_embeddings.weight",), vocabulary=vocab),
        Pair("positions.weight", (f"{embeddings}.position_embeddings.weight",)),
        Pair("token_types.weight", (f"{embeddings}.token_type_embeddings.weight",)),
        *linear("embed_norm", f"{embeddings}.LayerNorm", bias=True),
    ]
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}", f"bert.encoder.layer.{layer}"
        attention = f"{theirs}.attention"
        projections = [f"{attention}.self.{each}" for each in ("query", "key", "value")]
        found += [
            *linear(f"{ours}.attention.qkv", *projections, bias=True, rows=qkv_rows(config)),
            *linear(f"{ours}.attention.out", f"{attention}.output.dense", bias=True),
            *linear(f"{ours}.attention_norm", f"{attention}.output.LayerNorm", bias=True),
            *linear(f"{ours}.mlp.up", f"{theirs}.intermediate.dense", bias=True),
            *linear(f"{ours}.mlp.down", f"{theirs}.output.dense", bias=True),
            *linear(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm", bias=True),
        ]
    return [
        *found,
        *linear("transform", f"{head}.transform.dense", bias=True),
        *linear("transform_norm", f"{head}.transform.LayerNorm", bias=True),
        Pair("head_bias", (f"{head}.bias",), vocabulary=vocab),
    ]


def same(config: ModelConfig) -> dict[str, str]:
    """The head's matrix and bias may be written out."""
    return {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


BERT = Family(
    architectures={"bert": "BertForMaskedLM"},
    required=required,
    our_config=our_config,
    their_config=their_config,
    pairs=pairs,
    same=same,
    always={
        "family": "encoder",
        "position": "learned",
        "norm": "layer",
        "norm_placement": "post",
        "activation": "gelu",
        "gated": False,
        "bias": True,
        "qk_norm": False,
        "sliding_window": None,
        "attention_scale": None,
        "scale_embeddings": False,
        "embedding_norm": True,
        "tie_embeddings": True,
        "scale_logits": False,
        "n_experts": 0,
    },
    unused=(r"bert\.embeddings\.position_ids", r"bert\.pooler\..*", r"cls\.seq_relationship\..*"),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)
