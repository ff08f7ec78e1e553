"""One number per position: the model behind rewards and value functions."""

import torch
from torch import Tensor, nn

from llm.models.attention import Pattern
from llm.models.config import ModelConfig
from llm.models.decoder import Trunk


class ScalarHead(nn.Linear):
    """d_model -> 1, weight N(0, 1/√(d_model + 1)), bias 0 (Stiennon et al., 2020, arXiv:2009.01325)."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, 1)


class DecoderWithScalar(Trunk):
    """A decoder's trunk with a scalar head: a reward model or a critic."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.scalar = ScalarHead(config.d_model)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, pattern: Pattern | None = None
    ) -> Tensor:
        """tokens (batch, seq) int64 -> one score per position, (batch, seq)."""
        return self.scalar(self.hidden(tokens, positions, pattern)).squeeze(-1)

    @torch.no_grad()
    def load_trunk(self, state: dict[str, Tensor]) -> None:
        """Take the trunk's weights from a language model's state dict; the scalar head is left as it is."""
        trunk = {name: tensor for name, tensor in state.items() if name != "head.weight"}
        missing, unexpected = self.load_state_dict(trunk, strict=False)
        if unexpected or set(missing) - {"scalar.weight", "scalar.bias"}:
            raise ValueError(f"the weights do not fit this trunk: missing {missing}, unexpected {unexpected}")


def last_token_scores(scores: Tensor, lengths: Tensor) -> Tensor:
    """Scores (batch,) at each sequence's last token; scores (batch, seq) right-padded, lengths (batch,)."""
    return scores.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
