"""Named model shapes. A preset fixes everything but the vocabulary, which belongs to the tokenizer."""

from typing import Any

from llm.models.config import ModelConfig


def _shape(
    d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, max_seq_len: int, **more: Any
) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
        "max_seq_len": max_seq_len,
    } | more


PRESETS: dict[str, dict[str, Any]] = {
    # ~0.1M parameters at vocab 512: for tests.
    "tiny-100k": _shape(64, 2, 4, 2, 128, 256),
    # 1.1M at vocab 1024. Wide and shallow, with few heads: the best for a few minutes on a CPU, where a small
    # model that sees more tokens beats a larger one (a third layer costs 40 % more time and learns no more
    # from as many tokens; six heads of 32 learn no more than three of 64). A head of its own lets the
    # embedding begin large, which halves the steps to the same loss (`initial.py`).
    "quickstart-1m": _shape(192, 2, 3, 1, 480, 256, tie_embeddings=False),
    "llama-15m": _shape(288, 6, 6, 6, 768, 1024),
    "llama-125m": _shape(768, 12, 12, 12, 2048, 2048),
    "llama-350m": _shape(1024, 24, 16, 16, 2816, 2048),
    "llama-1b": _shape(2048, 16, 32, 8, 8192, 8192, rope_theta=500000.0),
    "llama-3b": _shape(3072, 28, 24, 8, 8192, 8192, rope_theta=500000.0),
    "llama-8b": _shape(4096, 32, 32, 8, 14336, 8192, rope_theta=500000.0, tie_embeddings=False),
}


def model_config(
    preset: str, vocab_size: int, max_seq_len: int | None = None, **overrides: Any
) -> ModelConfig:
    """The preset's shape with a vocabulary, an optional other context length, and fields overridden.

    Raises ValueError, naming the presets there are, when `preset` is none of them.
    """
    if preset not in PRESETS:
        raise ValueError(f"model preset {preset!r} does not exist; choose one of {', '.join(PRESETS)}")
    shape = PRESETS[preset] | overrides
    if max_seq_len is not None:
        shape |= {"max_seq_len": max_seq_len}
    return ModelConfig(vocab_size=vocab_size, **shape)
