"""Which optimizer moves which parameter: AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), with weight
decay on matrices only; or Muon for the matrices of the blocks and AdamW for the rest.
"""

import torch
from torch import nn

from llm.models.config import ModelConfig
from llm.training.muon import MOMENTUM, MuonWithAdamW, Rows
from llm.training.precision import Precision
from llm.training.recipe import Recipe

SCALE = "learning_rate_scale"
"""Key of a parameter group: what its learning rate is multiplied by."""


def make_optimizer(model: nn.Module, recipe: Recipe, precision: Precision) -> torch.optim.Optimizer:
    """The optimizer that a recipe asks for. Muon multiplies in what the model does."""
    optimizer = adamw(
        model,
        recipe.peak_learning_rate,
        recipe.weight_decay,
        recipe.betas,
        embedding_scale=recipe.embedding_scale,
        head_scale=recipe.head_scale,
    )
    if recipe.algorithm == "adamw":
        return optimizer
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return with_muon(optimizer, model, recipe.muon_momentum, dtype)


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


def with_muon(
    optimizer: torch.optim.AdamW, model: nn.Module, momentum: float, dtype: torch.dtype
) -> MuonWithAdamW:
    """Take the matrices of the blocks out of `optimizer`, an `adamw` of `model`, and give them to Muon.

    Embedding tables, heads, routers, norms and biases stay with AdamW: a table is a list of vectors, of which
    a batch touches few, a router and a head score one by one, and the last two are no matrices (Jordan et
    al., 2024).

    Args:
        momentum: of Muon.
        dtype: what Muon multiplies in.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    rows: dict[torch.Tensor, Rows] = {
        parameter: matrices_of(name, parameter.shape, config)
        for name, parameter in model.named_parameters()
        if is_hidden_matrix(name, parameter)
    }
    muon = []
    for group in optimizer.param_groups:
        hidden = [parameter for parameter in group["params"] if parameter in rows]
        if hidden:
            group["params"] = [parameter for parameter in group["params"] if parameter not in rows]
            muon.append({"params": hidden} | {key: group[key] for key in ("lr", "weight_decay", SCALE)})
    return MuonWithAdamW(muon, rows, optimizer, momentum, dtype)


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix of a block, or a stack of matrices, as experts are; no router."""
    return parameter.ndim >= 2 and "blocks." in name and not name.endswith(".router.weight")


def matrices_of(name: str, shape: torch.Size, config: ModelConfig) -> Rows:
    """Rows of each of the matrices that a block, or an expert, keeps in one parameter, from top to bottom."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind == "qkv":
        kv = config.n_kv_heads * config.head_dim
        return (config.n_heads * config.head_dim, kv, kv)
    if kind in ("kv", "gate_up"):
        return (shape[-2] // 2, shape[-2] // 2)
    return (shape[-2],)


def begin_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of all parameters that have none yet, as the first step would: to be loaded into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state and "betas" in group:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            elif not state:
                state[MOMENTUM] = torch.zeros_like(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate`, times each group's scale, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[SCALE]
