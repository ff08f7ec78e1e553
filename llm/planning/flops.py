"""Floating-point operations of training (Chowdhery et al., 2022, arXiv:2204.02311, appendix B)."""

from llm.models.config import ModelConfig


def training_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward for one token, without recomputation.

        6 · (parameters in matmuls) + 12 · n_layers · d_model · seq_len

    A weight in a matmul costs a multiply and an add in the forward pass and twice that in the backward
    pass. The second term is QKᵀ and AV over the whole square: the causal half that kernels may skip is
    counted, as is the custom, so that figures compare with published ones. The embedding is a look-up and
    costs nothing; the head is a matmul whether tied or not.
    """
    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    block = 2 * d * d + 2 * d * kv + 3 * d * config.d_ff
    matmul_parameters = config.n_layers * block + d * config.padded_vocab_size
    return 6.0 * matmul_parameters + 12.0 * config.n_layers * d * seq_len
