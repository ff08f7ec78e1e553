"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101) with weight decay on matrices only."""

import torch
from torch import nn

SCALE = "learning_rate_scale"
"""Key of a parameter group: what its learning rate is multiplied by."""


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float = 1e-8,
    embedding_scale: float = 1.0,
    head_scale: float = 1.0,
) -> torch.optim.AdamW:
    """One fused optimizer over all parameters.

    Matrices and embedding tables decay. Norms and biases do not: pulling a gain towards zero is no
    regulariser.

    Args:
        embedding_scale: multiplies the learning rate of the embedding table. Adam moves every weight by about
            the learning rate, whatever the gradient; a table that begins at N(0, 1) needs larger moves than
            matrices that begin at N(0, 1/√fan_in) (Yang et al., 2022, arXiv:2203.03466, table 8).
        head_scale: likewise of the vocabulary head, where it has weights of its own.
    """
    special = {"embed.weight": embedding_scale, "head.weight": head_scale}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((decay, special.get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, SCALE: scale, "lr": learning_rate * scale}
            for (decay, scale), parameters in groups.items()
        ],
        betas=betas,
        eps=eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate`, times each group's scale, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[SCALE]
