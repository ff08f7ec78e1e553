"""Named model shapes. A preset fixes everything but the vocabulary, which belongs to the tokenizer."""

from typing import Any

from llm.models.config import ModelConfig

PRESETS: dict[str, dict[str, Any]] = {
    # ~0.1M parameters at vocab 512: for tests.
    "tiny-100k": dict(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=128, max_seq_len=256),
    # ~1.9M at vocab 2048. Wide and shallow, with a third of the KV heads: fast on a CPU in training and decoding.
    "quickstart-2m": dict(d_model=192, n_layers=4, n_heads=6, n_kv_heads=2, d_ff=480, max_seq_len=512),
    "llama-15m": dict(d_model=288, n_layers=6, n_heads=6, n_kv_heads=6, d_ff=768, max_seq_len=1024),
    "llama-125m": dict(d_model=768, n_layers=12, n_heads=12, n_kv_heads=12, d_ff=2048, max_seq_len=2048),
    "llama-350m": dict(d_model=1024, n_layers=24, n_heads=16, n_kv_heads=16, d_ff=2816, max_seq_len=2048),
    "llama-1b": dict(
        d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=8192, max_seq_len=8192, rope_theta=500000.0
    ),
    "llama-3b": dict(
        d_model=3072, n_layers=28, n_heads=24, n_kv_heads=8, d_ff=8192, max_seq_len=8192, rope_theta=500000.0
    ),
    "llama-8b": dict(
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        d_ff=14336,
        max_seq_len=8192,
        rope_theta=500000.0,
        tie_embeddings=False,
    ),
}


def model_config(preset: str, vocab_size: int, max_seq_len: int | None = None, **overrides: Any) -> ModelConfig:
    """The preset's shape with a vocabulary, an optional other context length, and single fields overridden.

    Raises ValueError, naming the presets there are, when `preset` is none of them.
    """
    if preset not in PRESETS:
        raise ValueError(f"model preset {preset!r} does not exist; choose one of {', '.join(PRESETS)}")
    shape = PRESETS[preset] | overrides
    if max_seq_len is not None:
        shape |= {"max_seq_len": max_seq_len}
    return ModelConfig(vocab_size=vocab_size, **shape)
