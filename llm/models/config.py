"""The shape of a model as plain, frozen data. Imports neither torch nor ray.

Three families are built of the same layers. What a published model has that others have not is a field here,
and its value in `presets.py`.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VOCAB_MULTIPLE = 64

Family = Literal["decoder", "encoder-decoder", "encoder"]
Position = Literal["rope", "learned", "sinusoidal", "relative", "alibi", "none"]
Norm = Literal["rms", "layer"]
NormPlacement = Literal["pre", "post"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Scaling = Literal["linear", "llama3", "yarn"]


class RopeScaling(BaseModel):
    """How rotary frequencies are stretched for sequences longer than the model was first trained with.

    See `positions/rope.py` for the formulas.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Scaling
    factor: float = Field(ge=1)
    """How many times longer."""
    original_max_seq_len: int = Field(gt=0)
    """Longest sequence of the first training; linear scaling does without it."""
    low_frequency: float = Field(default=1.0, gt=0)
    """llama3: turns within the original length below which a frequency is divided by the factor,"""
    high_frequency: float = Field(default=4.0, gt=0)
    """and above which it is left as it is. yarn: the same two, as `beta_slow` and `beta_fast` there."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low_frequency >= self.high_frequency:
            raise ValueError(
                f"low_frequency={self.low_frequency} must be below high_frequency={self.high_frequency}"
            )
        return self


class ModelConfig(BaseModel):
    """A transformer. By default of the Llama shape: a pre-norm decoder with RMSNorm, rotary positions,
    grouped-query attention and SwiGLU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family = "decoder"
    """decoder: predicts the next token. encoder-decoder: writes an answer to an input that it has read whole.
    encoder: sees both sides of a token and says which one is hidden there.
    """
    vocab_size: int = Field(gt=0)
    """Number of token ids the tokenizer knows; the tables are padded to `padded_vocab_size`."""
    d_model: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Number of transformer blocks; in an encoder-decoder, of the decoder."""
    n_encoder_layers: int = Field(default=0, ge=0)
    """Number of the encoder's blocks, in an encoder-decoder."""
    n_heads: int = Field(gt=0)
    """Number of query heads."""
    n_kv_heads: int = Field(gt=0)
    """Number of key/value heads, each shared by n_heads / n_kv_heads query heads."""
    head_dim: int = Field(gt=0)
    """Size of one attention head; d_model / n_heads if left out."""
    d_ff: int = Field(gt=0)
    """Width of the hidden layer of the feed-forward network, or of each expert."""
    max_seq_len: int = Field(gt=0)
    """Longest sequence, in tokens, that the model is trained and served with."""
    position: Position = "rope"
    """How the model knows where a token stands: `positions/`."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How they are stretched for longer sequences."""
    relative_buckets: int = Field(default=32, gt=3)
    """Distances that a relative position bias tells apart,"""
    relative_max_distance: int = Field(default=128, gt=1)
    """and the distance from which on all are one."""
    norm: Norm = "rms"
    """RMSNorm, or LayerNorm with a bias where `bias` says so."""
    norm_placement: NormPlacement = "pre"
    """Before each layer, with one more at the end; or after each residual addition."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square inside a norm."""
    activation: Activation = "silu"
    """Of the feed-forward network."""
    gated: bool = True
    """Whether a second matrix gates the hidden layer: SwiGLU, GEGLU."""
    bias: bool = False
    """Whether linear layers and LayerNorms have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normalised, head by head."""
    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens that a token sees, itself the last of them; None for all before it."""
    attention_scale: float | None = Field(default=None, gt=0)
    """What scores are multiplied by; None for 1/√head_dim."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by √d_model."""
    embedding_norm: bool = False
    """Whether the sum of embeddings is normalised before the first block."""
    n_token_types: int = Field(default=0, ge=0)
    """Embeddings that say of which of so many texts a token is (BERT's segments)."""
    tie_embeddings: bool = True
    """Whether the output head reuses the embedding table."""
    scale_logits: bool = False
    """Whether hidden states are divided by √d_model before the output head."""
    n_experts: int = Field(default=0, ge=0)
    """Feed-forward networks of a block among which a router chooses; 0 for one without a router."""
    experts_per_token: int = Field(default=0, ge=0)
    """How many it chooses for each token."""
    balance_coefficient: float = Field(default=0.01, ge=0)
    """How much it costs to choose some experts more often than others: `experts.py`."""
    router_z_coefficient: float = Field(default=0.0, ge=0)
    """How much large logits of the router cost."""

    @model_validator(mode="before")
    @classmethod
    def _heads_share_the_width(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("head_dim") is None:
            d_model, n_heads = fields.get("d_model"), fields.get("n_heads")
            if isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0:
                if d_model % n_heads:
                    raise ValueError(
                        f"d_model={d_model} over n_heads={n_heads} must give a whole head size: choose "
                        "n_heads so that it divides d_model, or give head_dim"
                    )
                fields = fields | {"head_dim": d_model // n_heads}
        return fields

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even, for rotary positions: change n_heads or head_dim"
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} must be even, for sinusoidal positions")
        if (self.family == "encoder-decoder") != (self.n_encoder_layers > 0):
            raise ValueError(
                f"n_encoder_layers={self.n_encoder_layers} does not go with family={self.family}: an "
                "encoder-decoder has some, the others have 0"
            )
        if self.family == "encoder-decoder" and self.position in ("learned", "alibi"):
            raise ValueError(
                f"position={self.position}: an encoder-decoder takes relative, sinusoidal, rope or none"
            )
        if self.family == "encoder" and self.sliding_window:
            raise ValueError("sliding_window is for models that look back; an encoder looks both ways")
        if self.family == "encoder" and not self.tie_embeddings:
            raise ValueError("tie_embeddings=False: an encoder's head is its embedding table; leave it out")
        if self.rope_scaling is not None and self.position != "rope":
            raise ValueError(
                f"rope_scaling stretches rotary positions, and this has position={self.position}: leave it "
                "out, or take position=rope"
            )
        if not 0 <= self.experts_per_token <= self.n_experts or (self.n_experts > 0) > self.experts_per_token:
            raise ValueError(
                f"experts_per_token={self.experts_per_token} must be from 1 to n_experts={self.n_experts}"
            )
        if self.n_experts and (self.family != "decoder" or self.bias):
            raise ValueError(
                f"n_experts={self.n_experts}: experts are for decoders without biases; this has "
                f"family={self.family}, bias={self.bias}"
            )
        return self

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to 64, for aligned, evenly sharded matmuls."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return self.d_model**0.5 if self.scale_embeddings else 1.0

    @property
    def logit_scale(self) -> float:
        """What hidden states are multiplied by before the output head."""
        return self.d_model**-0.5 if self.scale_logits else 1.0

    @property
    def pre_norm(self) -> bool:
        """Whether norms stand before the layers."""
        return self.norm_placement == "pre"
