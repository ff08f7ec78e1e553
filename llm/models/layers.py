"""Feed-forward networks, norms, and the block of attention and feed-forward."""

from collections.abc import Callable

from torch import Tensor, nn

from llm.models.activations import ACTIVATIONS
from llm.models.attention import Attend, Attention, CrossAttention, KeysValues
from llm.models.config import ModelConfig
from llm.models.experts import Experts
from llm.models.positions.rope import Rotation


def make_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm or LayerNorm over the last dimension, d_model."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


class FeedForward(nn.Module):
    """down(f(up(x))); gated, down(f(gate(x)) · up(x)) with gate and up in one matmul (Shazeer, 2020,
    arXiv:2002.05202).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        if config.gated:
            self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=config.bias)
        else:
            self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.gated = config.gated
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, seq, d_model) -> the same shape."""
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class Block(nn.Module):
    """Attention, attention to an encoder if there is one, and feed-forward, each added to the residual.

    pre-norm   x + layer(norm(x))
    post-norm  norm(x + layer(x))
    """

    def __init__(self, config: ModelConfig, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer)
        if cross:
            self.cross_norm = make_norm(config)
        self.cross = CrossAttention(config, layer) if cross else None
        self.mlp_norm = make_norm(config)
        self.mlp = Experts(config) if config.n_experts else FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        attend: Attend,
        memory: Tensor | KeysValues | None = None,
        attend_memory: Attend | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (batch, seq, d_model) -> the same shape; memory as in `CrossAttention`, row_weights in `Experts`.

        With experts also their router's losses, (batch,): a result of the block, so that FSDP gathers its
        weights before their gradient comes.
        """
        x = self._add(x, self.attention_norm, lambda y: self.attention(y, rotation, attend))
        cross = self.cross
        if cross is not None:
            assert memory is not None
            assert attend_memory is not None
            x = self._add(x, self.cross_norm, lambda y: cross(y, memory, attend_memory))
        if isinstance(self.mlp, Experts):
            y, losses = self.mlp(self.mlp_norm(x) if self.pre_norm else x, row_weights)
            return (x + y if self.pre_norm else self.mlp_norm(x + y)), losses
        return self._add(x, self.mlp_norm, self.mlp)

    def _add(self, x: Tensor, norm: nn.Module, layer: Callable[[Tensor], Tensor]) -> Tensor:
        return x + layer(norm(x)) if self.pre_norm else norm(x + layer(x))
