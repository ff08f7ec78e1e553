"""Named model shapes. A preset fixes everything but the vocabulary, which belongs to the tokenizer."""

import difflib
from dataclasses import dataclass
from typing import Any

from llm.models.config import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A shape, and the vocabulary of the model that was published with it."""

    source: str
    """Paper, or for what it is ours."""
    vocab_size: int
    shape: dict[str, Any]


def _preset(source: str, vocab_size: int, family_fields: dict[str, Any], **fields: Any) -> Preset:
    shape = family_fields | fields
    shape.setdefault("n_kv_heads", shape["n_heads"])
    return Preset(source, vocab_size, shape)


def _sizes(d_model: int, n_layers: int, n_heads: int, d_ff: int, **more: Any) -> dict[str, Any]:
    return {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_ff": d_ff} | more


_GPT = {
    "position": "learned",
    "norm": "layer",
    "activation": "gelu_tanh",
    "gated": False,
    "bias": True,
}
_GPT2 = ("Radford et al., 2019", 50257, _GPT | {"max_seq_len": 1024})
_GPT3 = ("Brown et al., 2020, arXiv:2005.14165", 50257, _GPT | {"max_seq_len": 2048})
_LLAMA2 = ("Touvron et al., 2023, arXiv:2307.09288", 32000, {"max_seq_len": 4096, "tie_embeddings": False})
_LLAMA3 = (
    "Grattafiori et al., 2024, arXiv:2407.21783",
    128256,
    {"max_seq_len": 8192, "rope_theta": 500000.0, "tie_embeddings": False},
)
_MIXTRAL = (
    "Jiang et al., 2024, arXiv:2401.04088",
    32000,
    {"max_seq_len": 32768, "rope_theta": 1e6, "tie_embeddings": False},
)
_LLAMA = {"rope_theta": 500000.0}
_TRANSFORMER = (
    "Vaswani et al., 2017, arXiv:1706.03762",
    37000,
    {
        "family": "encoder-decoder",
        "position": "sinusoidal",
        "max_seq_len": 1024,
        "norm": "layer",
        "norm_placement": "post",
        "activation": "relu",
        "gated": False,
        "bias": True,
        "scale_embeddings": True,
    },
)
_T5_BOTH = {
    "family": "encoder-decoder",
    "position": "relative",
    "max_seq_len": 512,
    "norm_eps": 1e-6,
    "attention_scale": 1.0,
}
_T5_V10 = _T5_BOTH | {"activation": "relu", "gated": False, "scale_logits": True}
_T5_PAPER = "Raffel et al., 2020, arXiv:1910.10683"
_T5_V11_PAPER = "Shazeer, 2020, arXiv:2002.05202"
_BERT = (
    "Devlin et al., 2019, arXiv:1810.04805",
    30522,
    {
        "family": "encoder",
        "position": "learned",
        "max_seq_len": 512,
        "norm": "layer",
        "norm_placement": "post",
        "norm_eps": 1e-12,
        "activation": "gelu",
        "gated": False,
        "bias": True,
        "embedding_norm": True,
        "n_token_types": 2,
    },
)


def _t5(d_model: int, n_layers: int, n_heads: int, d_ff: int, head_dim: int = 64) -> Preset:
    sizes = _sizes(d_model, n_layers, n_heads, d_ff, n_encoder_layers=n_layers, head_dim=head_dim)
    return _preset(_T5_PAPER, 32128, _T5_V10, **sizes)


def _t5_v11(d_model: int, n_layers: int, n_heads: int, d_ff: int) -> Preset:
    sizes = _sizes(d_model, n_layers, n_heads, d_ff, n_encoder_layers=n_layers, head_dim=64)
    return _preset(_T5_V11_PAPER, 32128, _T5_BOTH, **sizes, activation="gelu_tanh", tie_embeddings=False)


def _transformer(d_model: int, n_heads: int, d_ff: int) -> Preset:
    sizes = _sizes(d_model, 6, n_heads, d_ff, n_encoder_layers=6)
    return _preset(*_TRANSFORMER, **sizes)


PRESETS: dict[str, Preset] = {
    # ~0.1M parameters at vocab 512, one of each family.
    "tiny-100k": _preset("for tests", 512, {}, **_sizes(64, 2, 4, 128), n_kv_heads=2, max_seq_len=256),
    "t5-tiny": _preset("for tests", 512, _T5_V10, **_sizes(48, 2, 3, 96, n_encoder_layers=2)),
    "bert-tiny": _preset("for tests", 512, _BERT[2], **_sizes(64, 2, 4, 128), max_seq_len=256),
    # 1.1M at vocab 1024. Wide and shallow, with few heads: the best for a few minutes on a CPU, where a small
    # model that sees more tokens beats a larger one (a third layer costs 40 % more time and learns no more
    # from as many tokens; six heads of 32 learn no more than three of 64). A head of its own lets the
    # embedding begin large, which halves the steps to the same loss (`initial.py`).
    "quickstart-1m": _preset(
        "for a first run on a CPU",
        1024,
        {},
        **_sizes(192, 2, 3, 480),
        n_kv_heads=1,
        max_seq_len=256,
        tie_embeddings=False,
    ),
    "llama-15m": _preset("ours", 32000, {}, **_sizes(288, 6, 6, 768), max_seq_len=1024),
    "llama-125m": _preset("ours", 32000, {}, **_sizes(768, 12, 12, 2048), max_seq_len=2048),
    # As many FLOPs a token as llama-125m, each of whose feed-forward networks became 8 half as wide.
    "moe-280m": _preset(
        "ours",
        32000,
        {},
        **_sizes(768, 12, 12, 1024),
        n_experts=8,
        experts_per_token=2,
        max_seq_len=2048,
    ),
    "llama-350m": _preset("ours", 32000, {}, **_sizes(1024, 24, 16, 2816), max_seq_len=2048),
    "llama-1b": _preset("ours", 128256, _LLAMA, **_sizes(2048, 16, 32, 8192), n_kv_heads=8, max_seq_len=8192),
    "llama-3b": _preset("ours", 128256, _LLAMA, **_sizes(3072, 28, 24, 8192), n_kv_heads=8, max_seq_len=8192),
    "gpt2": _preset(*_GPT2, **_sizes(768, 12, 12, 3072)),
    "gpt2-medium": _preset(*_GPT2, **_sizes(1024, 24, 16, 4096)),
    "gpt2-large": _preset(*_GPT2, **_sizes(1280, 36, 20, 5120)),
    "gpt2-xl": _preset(*_GPT2, **_sizes(1600, 48, 25, 6400)),
    # Table 2.1 of the paper. Two of its rows cannot be meant: 24 heads of 128 in a width of 2048, which has
    # the 1.3B parameters with 16, and a width of 5140 for 40 heads of 128. Every second layer of theirs had
    # sparse attention; here all are dense.
    "gpt3-small": _preset(*_GPT3, **_sizes(768, 12, 12, 4 * 768)),
    "gpt3-medium": _preset(*_GPT3, **_sizes(1024, 24, 16, 4 * 1024)),
    "gpt3-large": _preset(*_GPT3, **_sizes(1536, 24, 16, 4 * 1536)),
    "gpt3-xl": _preset(*_GPT3, **_sizes(2048, 24, 16, 4 * 2048)),
    "gpt3-2.7b": _preset(*_GPT3, **_sizes(2560, 32, 32, 4 * 2560)),
    "gpt3-6.7b": _preset(*_GPT3, **_sizes(4096, 32, 32, 4 * 4096)),
    "gpt3-13b": _preset(*_GPT3, **_sizes(5120, 40, 40, 4 * 5120)),
    "gpt3-175b": _preset(*_GPT3, **_sizes(12288, 96, 96, 4 * 12288)),
    "llama2-7b": _preset(*_LLAMA2, **_sizes(4096, 32, 32, 11008)),
    "llama2-13b": _preset(*_LLAMA2, **_sizes(5120, 40, 40, 13824)),
    "llama2-70b": _preset(*_LLAMA2, **_sizes(8192, 80, 64, 28672), n_kv_heads=8),
    "llama3-8b": _preset(*_LLAMA3, **_sizes(4096, 32, 32, 14336), n_kv_heads=8),
    "llama3-70b": _preset(*_LLAMA3, **_sizes(8192, 80, 64, 28672), n_kv_heads=8),
    "llama3-405b": _preset(*_LLAMA3, **_sizes(16384, 126, 128, 53248), n_kv_heads=8),
    "mixtral-8x7b": _preset(
        *_MIXTRAL, **_sizes(4096, 32, 32, 14336), n_kv_heads=8, n_experts=8, experts_per_token=2
    ),
    "transformer-base": _transformer(512, 8, 2048),
    "transformer-big": _transformer(1024, 16, 4096),
    "t5-small": _t5(512, 6, 8, 2048),
    "t5-base": _t5(768, 12, 12, 3072),
    "t5-large": _t5(1024, 24, 16, 4096),
    "t5-3b": _t5(1024, 24, 32, 16384, head_dim=128),
    "t5-11b": _t5(1024, 24, 128, 65536, head_dim=128),
    "t5-v1.1-small": _t5_v11(512, 8, 6, 1024),
    "t5-v1.1-base": _t5_v11(768, 12, 12, 2048),
    "t5-v1.1-large": _t5_v11(1024, 24, 16, 2816),
    "t5-v1.1-xl": _t5_v11(2048, 24, 32, 5120),
    "t5-v1.1-xxl": _t5_v11(4096, 24, 64, 10240),
    "bert-base": _preset(*_BERT, **_sizes(768, 12, 12, 3072)),
    "bert-large": _preset(*_BERT, **_sizes(1024, 24, 16, 4096)),
}


def model_config(
    preset: str, vocab_size: int | None = None, max_seq_len: int | None = None, **overrides: Any
) -> ModelConfig:
    """The preset's shape with a vocabulary (by default the published one), an optional other context length,
    and fields overridden. Where every query head has keys of its own, another n_heads is one of both.

    Raises ValueError, naming the nearest preset, when `preset` is none.
    """
    if preset not in PRESETS:
        raise ValueError(f"model preset {preset!r} does not exist; {nearest_preset(preset)}")
    found = PRESETS[preset]
    shape = found.shape | overrides
    if found.shape["n_kv_heads"] == found.shape["n_heads"] and "n_kv_heads" not in overrides:
        shape["n_kv_heads"] = shape["n_heads"]
    if max_seq_len is not None:
        shape |= {"max_seq_len": max_seq_len}
    return ModelConfig(vocab_size=found.vocab_size if vocab_size is None else vocab_size, **shape)


def nearest_preset(name: str) -> str:
    """What to say of a name that no preset has, or with which several begin."""
    name = name.lower()
    begun = [preset for preset in PRESETS if preset.startswith(name)]
    nearest = " or ".join(begun[:3] or difflib.get_close_matches(name, PRESETS, n=1))
    return f"did you mean {nearest}? `manta models` lists all" if nearest else "`manta models` lists all"
