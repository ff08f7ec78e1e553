"""Floating-point operations of training (Chowdhery et al., 2022, arXiv:2204.02311, appendix B)."""

from llm.models.config import ModelConfig


def training_flops_per_token(
    config: ModelConfig, seq_len: int, input_len: int | None = None, predicted: float = 1.0
) -> float:
    """FLOPs of forward and backward for one token, without recomputation.

        6 · (weights in matmuls that the token meets) + 12 · layers · n_heads · head_dim · keys

    A weight in a matmul costs a multiply and an add in the forward pass and twice that in the backward
    pass. Of the experts, a token meets those chosen for it. The second term is QKᵀ and AV over the whole
    square: the causal half that kernels may skip is counted, as is the custom, so that figures compare with
    published ones. With a sliding window a token has as many keys as the window has places. Embeddings are
    look-ups and cost nothing; the head is a matmul whether tied or not.

    Args:
        seq_len: tokens of a row.
        input_len: of an encoder-decoder, tokens that its encoder reads, `seq_len` if None. One token of the
            output then bears its share of the encoder.
        predicted: of an encoder, the part of the tokens that have a target. They alone meet the head, and
            each bears its share of those that are only read: FLOPs are for one of them.
    """
    if config.family != "encoder-decoder":
        keys = min(seq_len, config.sliding_window or seq_len)
        read = config.n_layers * _block(config, keys) + 6.0 * _transform(config)
        return read / predicted + 6.0 * _head(config)
    inputs = seq_len if input_len is None else input_len
    keys = min(seq_len, config.sliding_window or seq_len)
    across = 6.0 * 2 * config.d_model * _q(config) + 12.0 * _q(config) * inputs
    decoder = config.n_layers * (_block(config, keys) + across) + 6.0 * _head(config)
    memory = config.n_layers * 6.0 * config.d_model * 2 * _kv(config)
    encoder = config.n_encoder_layers * _block(config, inputs) + memory
    return decoder + encoder * inputs / seq_len


def _block(config: ModelConfig, keys: int) -> float:
    """Self-attention and feed-forward of one token that has so many keys."""
    d = config.d_model
    attention = d * (2 * _q(config) + 2 * _kv(config))
    network = (3 if config.gated else 2) * d * config.d_ff
    if config.n_experts:
        network = config.experts_per_token * network + d * config.n_experts
    return 6.0 * (attention + network) + 12.0 * _q(config) * keys


def _transform(config: ModelConfig) -> int:
    """Weights of the layer that a masked LM has more, before its head."""
    return config.d_model**2 if config.family == "encoder" else 0


def _head(config: ModelConfig) -> int:
    """Weights between the last hidden state and the logits."""
    return config.d_model * config.padded_vocab_size


def _q(config: ModelConfig) -> int:
    return config.n_heads * config.head_dim


def _kv(config: ModelConfig) -> int:
    return config.n_kv_heads * config.head_dim
