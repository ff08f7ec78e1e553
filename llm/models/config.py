"""The shape of a model as plain, frozen data. Imports neither torch nor ray."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VOCAB_MULTIPLE = 64


class ModelConfig(BaseModel):
    """A pre-norm decoder of the Llama shape: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["decoder"] = "decoder"
    vocab_size: int = Field(gt=0)
    """Number of token ids the tokenizer knows; the tables are padded to `padded_vocab_size`."""
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Number of transformer blocks."""
    n_heads: int = Field(gt=0)
    """Number of query heads."""
    n_kv_heads: int = Field(gt=0)
    """Number of key/value heads, each shared by n_heads / n_kv_heads query heads."""
    d_ff: int = Field(gt=0)
    """Width of the SwiGLU hidden layer."""
    max_seq_len: int = Field(gt=0)
    """Longest sequence, in tokens, that the model is trained and served with."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = True
    """Whether the output head reuses the embedding table."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"d_model={self.d_model} over n_heads={self.n_heads} must give an even, whole head size: "
                "choose n_heads so that d_model / n_heads is an even integer"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        return self

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.d_model // self.n_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to 64, for aligned, evenly sharded matmuls."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameter_count(self) -> int:
        """Number of parameters of `Decoder(config)`, vocabulary padding included."""
        d, kv = self.d_model, self.n_kv_heads * self.head_dim
        block = 2 * d * d + 2 * d * kv + 3 * d * self.d_ff + 2 * d
        tables = (1 if self.tie_embeddings else 2) * self.padded_vocab_size * d
        return self.n_layers * block + tables + d
