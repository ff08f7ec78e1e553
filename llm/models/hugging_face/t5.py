"""T5 v1.0 and v1.1 (`T5ForConditionalGeneration`).

The first block of each stack holds the relative position bias of all of them. v1.0 ties the head to the
embedding and scales what goes into it; v1.1 does neither. Their config.json has one field for both.
"""

from typing import Any

from llm.models.config import ModelConfig
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import ACTIVATIONS, Fields, their_activation
from llm.models.hugging_face.names import Pair, linear, qkv_rows


def required(config: ModelConfig) -> dict[str, Any]:
    """As many heads for keys as for queries; scaled if and only if tied."""
    return {"n_kv_heads": config.n_heads, "scale_logits": config.tie_embeddings}


def our_config(fields: Fields, names: set[str]) -> dict[str, Any]:
    """A file written by transformers 5 says that v1.1 is tied, too; then its tensors and the scale tell."""
    said = fields.get("tie_word_embeddings", True)
    scaled = fields.get("scale_decoder_outputs", said)
    projection = fields.get("feed_forward_proj", "relu")
    gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
    if activation not in ACTIVATIONS:
        mend = f"{', '.join(ACTIVATIONS)}, alone or after gated-, can be imported"
        raise fields.refusal("feed_forward_proj", projection, mend)
    layers, n_heads = fields.number("num_layers"), fields.number("num_heads")
    return {
        "vocab_size": fields.number("vocab_size"),
        "d_model": fields.number("d_model"),
        "n_layers": fields.number("num_decoder_layers", layers),
        "n_encoder_layers": layers,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "head_dim": fields.number("d_kv", 64),
        "d_ff": fields.number("d_ff"),
        "max_seq_len": fields.number("n_positions", 512),
        "relative_buckets": fields.number("relative_attention_num_buckets", 32),
        "relative_max_distance": fields.number("relative_attention_max_distance", 128),
        "norm_eps": fields.number("layer_norm_epsilon", 1e-6),
        "activation": "gelu_tanh" if projection == "gated-gelu" else ACTIVATIONS[activation],
        "gated": gated,
        "tie_embeddings": "lm_head.weight" not in names or (said and scaled),
        "scale_logits": scaled,
    }


def their_config(config: ModelConfig) -> dict[str, Any]:
    """All of it."""
    return {
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "num_layers": config.n_encoder_layers,
        "num_decoder_layers": config.n_layers,
        "num_heads": config.n_heads,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "n_positions": config.max_seq_len,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": _projection(config),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _projection(config: ModelConfig) -> str:
    """`gated-gelu` means the one by tanh there; `gated-` with any other name means what it says."""
    if config.gated and config.activation == "gelu_tanh":
        return "gated-gelu"
    name = "gelu_new" if config.activation == "gelu_tanh" else their_activation(config.activation)
    return f"gated-{name}" if config.gated else name


def pairs(config: ModelConfig) -> list[Pair]:
    """All parameters."""
    vocab = config.vocab_size
    found = [Pair("embed.weight", ("shared.weight",), vocabulary=vocab)]
    for stack, layers in (("encoder", config.n_encoder_layers), ("decoder", config.n_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found.append(Pair(f"{stack}.relative.weight", (bias,)))
        for layer in range(layers):
            found += _block(
                config, f"{stack}.blocks.{layer}", f"{stack}.block.{layer}.layer", stack == "decoder"
            )
        found += linear(f"{stack}.norm", f"{stack}.final_layer_norm", bias=False)
    if not config.tie_embeddings:
        found.append(Pair("head.weight", ("lm_head.weight",), vocabulary=vocab))
    return found


def _block(config: ModelConfig, ours: str, theirs: str, crosses: bool) -> list[Pair]:
    """Theirs number the layers of a block: attention, attention to the encoder if any, feed-forward."""
    q_rows, *kv_rows = qkv_rows(config)
    own, last = f"{theirs}.0.SelfAttention", f"{theirs}.{2 if crosses else 1}"
    found = [
        *linear(f"{ours}.attention_norm", f"{theirs}.0.layer_norm", bias=False),
        *linear(
            f"{ours}.attention.qkv", *(f"{own}.{each}" for each in "qkv"), bias=False, rows=(q_rows, *kv_rows)
        ),
        *linear(f"{ours}.attention.out", f"{own}.o", bias=False),
    ]
    if crosses:
        across = f"{theirs}.1.EncDecAttention"
        found += [
            *linear(f"{ours}.cross_norm", f"{theirs}.1.layer_norm", bias=False),
            *linear(f"{ours}.cross.q", f"{across}.q", bias=False),
            *linear(f"{ours}.cross.kv", f"{across}.k", f"{across}.v", bias=False, rows=tuple(kv_rows)),
            *linear(f"{ours}.cross.out", f"{across}.o", bias=False),
        ]
    found += linear(f"{ours}.mlp_norm", f"{last}.layer_norm", bias=False)
    network = f"{last}.DenseReluDense"
    if config.gated:
        gate_up = (f"{network}.wi_0", f"{network}.wi_1")
        found += linear(f"{ours}.mlp.gate_up", *gate_up, bias=False, rows=(config.d_ff, config.d_ff))
    else:
        found += linear(f"{ours}.mlp.up", f"{network}.wi", bias=False)
    return found + linear(f"{ours}.mlp.down", f"{network}.wo", bias=False)


def same(config: ModelConfig) -> dict[str, str]:
    """Both stacks have the table under names of their own, and so may the head."""
    aliases = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if config.tie_embeddings:
        aliases.append("lm_head.weight")
    return dict.fromkeys(aliases, "shared.weight")


T5 = Family(
    architectures={"t5": "T5ForConditionalGeneration"},
    required=required,
    our_config=our_config,
    their_config=their_config,
    pairs=pairs,
    same=same,
    always={
        "family": "encoder-decoder",
        "position": "relative",
        "norm": "rms",
        "norm_placement": "pre",
        "bias": False,
        "qk_norm": False,
        "sliding_window": None,
        "attention_scale": 1.0,
        "scale_embeddings": False,
        "embedding_norm": False,
        "n_token_types": 0,
        "n_experts": 0,
    },
    # A table of the first checkpoints that no version of the model has used.
    unused=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
