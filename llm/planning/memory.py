"""Bytes that one rank needs to train a model, in closed form: nothing is built, nor torch imported.

The step is that of `llm/training`: FSDP2 over N ranks (none at one rank in fp32), fp32 weights and AdamW,
loss in chunks. P are all parameters, P_b those of a block, P_r the others; a is 2 bytes in bf16 and 4 in
fp32; of tokens there are n in a micro-batch.

    weights       4 P / N
    optimizer     8 P / N           two moments
    gradients     4 P / N           4 P if micro-batches are accumulated: they are reduced once, at the end
    gathered      a P_r             whole weights outside the blocks
    activations   n · Σ_layers of what `_block` lists; with checkpointing a block's input alone
    loss          what `llm/training/loss_chunks.py` lists
    working       what `_working` lists, for the block under way in the backward pass
    reducing      (a + 4) P_r       whole gradients that are reduced last

    peak = weights + optimizer + gathered + max(activations + max(loss, working), gradients + reducing)

In the backward pass activations go as gradients come, evenly, so that the most is held at the one end or the
other. Accumulated gradients are there from the start and add to the activations.

Not counted: the CUDA context and libraries (0.5 to 1 GB), what the allocator wastes, and buffers of kernels.
"""

from dataclasses import dataclass
from typing import Literal

from llm.models.config import ModelConfig
from llm.models.parameters import parameter_parts
from llm.training.loss_chunks import loss_bytes


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one rank, by part."""

    weights: int
    optimizer: int
    gradients: int
    gathered: int
    activations: int
    loss: int
    working: int
    reducing: int
    accumulates: bool
    """Whether gradients of earlier micro-batches are held while later ones run."""

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        first, last = self.activations + max(self.loss, self.working), self.reducing
        if self.accumulates:
            first += self.gradients
        return self.weights + self.optimizer + self.gathered + max(first, self.gradients + last)


@dataclass(frozen=True)
class Step:
    """How a step is taken."""

    micro_batch: int
    """Sequences that a rank takes through the model at a time."""
    seq_len: int
    """Tokens of each."""
    input_len: int | None = None
    """Tokens that an encoder reads for them, `seq_len` if None."""
    micro_batches: int = 1
    """Micro-batches of a rank in one step."""
    ranks: int = 1
    """Processes that share weights, gradients and optimizer state."""
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    """Whether blocks keep their input alone and compute the rest again in the backward pass."""
    on_gpu: bool = True
    """Whether a GPU computes. On a CPU RMSNorm keeps two copies of its input in fp32, and chunks of the loss
    are smaller.
    """

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return 2 if self.precision == "bf16" else 4

    @property
    def sharded(self) -> bool:
        """Whether the model is under FSDP."""
        return self.ranks > 1 or self.precision == "bf16"


def training_memory(config: ModelConfig, step: Step) -> TrainingMemory:
    """What one rank holds to train the model so."""
    parts = parameter_parts(config, config.padded_vocab_size)
    total = sum(parts.values())
    layers = config.n_layers + config.n_encoder_layers
    root = parts["embeddings"] + parts["head"]
    block = (total - root) // layers
    shared = -(-total // step.ranks)
    accumulates, a = step.micro_batches > 1, step.itemsize
    return TrainingMemory(
        weights=4 * shared,
        optimizer=8 * shared,
        gradients=4 * (total if accumulates else shared),
        gathered=a * root if step.sharded else 0,
        activations=_activations(config, step),
        loss=loss_bytes(
            step.micro_batch * step.seq_len, config.d_model, config.padded_vocab_size, a, step.on_gpu
        ),
        working=_working(config, step, block),
        reducing=(a + 4) * root if step.sharded else 0,
        accumulates=accumulates,
    )


def _activations(config: ModelConfig, step: Step) -> int:
    """What autograd keeps of a forward pass, up to the hidden states that the head gets."""
    a, d, tokens = step.itemsize, config.d_model, step.micro_batch * step.seq_len
    cross = config.family == "encoder-decoder"
    stacks = [(config.n_layers, step.seq_len, cross)]
    if cross:
        inputs = step.seq_len if step.input_len is None else step.input_len
        stacks.append((config.n_encoder_layers, inputs, False))
    kept = 0
    for layers, length, crosses in stacks:
        rows = step.micro_batch * length
        block = _block(config, step, length, crosses)
        kept += layers * (rows * d * a if step.checkpointing else block)
        if config.position == "alibi":
            kept += 4 * config.n_heads * length**2  # The mask of all layers, fp32.
        if config.pre_norm:
            kept += rows * (_norm(config, step) + a * d)
    if config.family == "encoder":
        kept += (
            tokens * 4 * d * a
        )  # the masked LM's transform: its input, what it gives, its norm, the head's
    return kept


def _block(config: ModelConfig, step: Step, length: int, crosses: bool) -> int:
    """Bytes that one block keeps of a micro-batch, per token:

    norm         its input (RMSNorm on a CPU: twice, in fp32), and d that the next matmul keeps
    attention    q, k, v; q and k once more if they are rotated or normalised; what comes out; 4 · n_heads
                 probabilities for each key, where a bias of the scores is learned
                 the mask, once a layer, with a window; ALiBi's for every head, where it is cast to bf16
    feed-forward up and f(up), gated: gate, up, f(gate) and their product; relu keeps its result alone
    cross        a norm; q, what comes out; k, v of the encoder's tokens
    """
    a, d, rows = step.itemsize, config.d_model, step.micro_batch * length
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    norm = _norm(config, step) + a * d
    attention = a * (q + 2 * kv + q) + 4 * config.n_heads
    if config.position == "rope":
        attention += a * (q + kv)
    if config.qk_norm:
        attention += (2 * a if step.on_gpu else 2 * 4) * (q + kv) // 2
    if config.position == "relative":
        attention += a * (config.n_heads * length + q)
    per_token = 2 * norm + attention + _feed_forward(config, a)
    kept = rows * per_token
    if config.sliding_window and config.sliding_window < length:
        kept += a * length**2
    if config.position == "alibi" and step.precision == "bf16":
        kept += a * config.n_heads * length**2
    if crosses:
        inputs = step.micro_batch * (step.seq_len if step.input_len is None else step.input_len)
        kept += rows * (norm + 2 * a * q + 4 * config.n_heads) + inputs * 2 * a * kv
    return kept


def _norm(config: ModelConfig, step: Step) -> int:
    """Bytes that a norm keeps of one token."""
    if config.norm == "rms" and not step.on_gpu:
        return 2 * 4 * config.d_model
    return step.itemsize * config.d_model + (4 if config.norm == "rms" else 8)


def _feed_forward(config: ModelConfig, a: int) -> int:
    """Bytes that a feed-forward network keeps of one token, its input aside.

    Of experts: of each copy also its input, what comes out, and that back in its place; the router's logits
    and probabilities.
    """
    kept = 4 if config.gated else 1 if config.activation == "relu" else 2
    if not config.n_experts:
        return a * kept * config.d_ff
    copies = config.experts_per_token * a * (kept * config.d_ff + 3 * config.d_model)
    return copies + config.n_experts * (a + 4 + 4)


def _working(config: ModelConfig, step: Step, parameters: int) -> int:
    """The last block's backward pass, the first to come:

    head      its gradient, which came first and is new unless gradients accumulate
    weights   under FSDP whole ones, of this block and of the one that is fetched ahead
    hidden    gradients of the hidden layer, less what is no longer kept; with checkpointing, all that is kept
    or then   the block's whole gradients on their way to be reduced, in place of what it kept
    """
    block = _block(config, step, step.seq_len, config.family == "encoder-decoder")
    width = 2 if config.gated or config.activation == "relu" else 1
    held = step.micro_batch * step.seq_len * step.itemsize * (width * config.d_ff + 2 * config.d_model)
    if step.checkpointing:
        held += block
    if step.sharded:
        reducing = (step.itemsize + 4) * parameters
        held = 2 * step.itemsize * parameters + max(held, reducing - (0 if step.checkpointing else block))
    return held + (0 if step.micro_batches > 1 else 4 * config.d_model * config.padded_vocab_size)
