"""How many parameters a model has, in closed form: nothing is built, and nothing imported but the shape."""

from llm.models.config import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """All parameters of `build(config)`, the padding of the vocabulary included."""
    return sum(parameter_parts(config, config.padded_vocab_size).values())


def published_count(config: ModelConfig) -> int:
    """The same without the padding: what papers and other libraries count."""
    return sum(parameter_parts(config, config.vocab_size).values())


def active_count(config: ModelConfig) -> int:
    """Parameters of matmuls and tables that one token meets: of the experts, those chosen for it."""
    parts = parameter_parts(config, config.padded_vocab_size)
    if config.n_experts:
        parts["feed-forward"] = parts["feed-forward"] * config.experts_per_token // config.n_experts
    return sum(parts.values())


def parameter_parts(config: ModelConfig, vocab_rows: int) -> dict[str, int]:
    """Parameters by part, with a vocabulary of so many rows."""
    d, layers = config.d_model, config.n_layers + config.n_encoder_layers
    crossing = config.n_layers if config.family == "encoder-decoder" else 0
    stacks = 2 if crossing else 1
    norms = layers * 2 + crossing + (stacks if config.pre_norm else 0)
    return {
        "embeddings": _embeddings(config, vocab_rows),
        "attention": (layers + crossing) * _attention(config) + layers * _qk_norms(config),
        "feed-forward": layers * max(1, config.n_experts) * _feed_forward(config),
        "routers": layers * config.n_experts * d,
        "norms": norms * _norm(config),
        "head": _head(config, vocab_rows),
    }


def _embeddings(config: ModelConfig, vocab_rows: int) -> int:
    tables = vocab_rows + config.n_token_types
    if config.position == "learned":
        tables += config.max_seq_len
    biases = 0
    if config.position == "relative":
        stacks = 2 if config.family == "encoder-decoder" else 1
        biases = stacks * config.relative_buckets * config.n_heads
    return tables * config.d_model + biases + (2 * config.d_model if config.embedding_norm else 0)


def _attention(config: ModelConfig) -> int:
    """q, k, v and the way back: as many parameters across to an encoder as within a stack."""
    d, q, kv = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return d * (2 * q + 2 * kv) + (q + 2 * kv + d if config.bias else 0)


def _qk_norms(config: ModelConfig) -> int:
    return 2 * config.head_dim if config.qk_norm else 0


def _feed_forward(config: ModelConfig) -> int:
    d, up = config.d_model, (2 if config.gated else 1) * config.d_ff
    return d * up + config.d_ff * d + (up + d if config.bias else 0)


def _norm(config: ModelConfig) -> int:
    return config.d_model * (2 if config.norm == "layer" and config.bias else 1)


def _head(config: ModelConfig, vocab_rows: int) -> int:
    d = config.d_model
    if config.family == "encoder":
        return d * d + d + 2 * d + vocab_rows
    return 0 if config.tie_embeddings else vocab_rows * d
