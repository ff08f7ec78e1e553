"""What is disturbed: the steps of the smoke quickstart, and pre-training of the families that it lacks."""

from pipelines.model_options import ModelOptions
from pipelines.quickstart.chain import Step, chain
from pipelines.quickstart.config import QuickstartConfig

_FAMILIES = {
    "pretrain t5": ModelOptions(preset="t5-tiny"),
    "pretrain bert": ModelOptions(preset="bert-tiny"),
    "pretrain experts": ModelOptions(
        preset="moe-280m", d_model=64, n_layers=2, n_heads=2, n_kv_heads=2, d_ff=64, max_seq_len=256
    ),
}
_KINDS = {
    "corpus": "corpora",
    "tokens": "tokens",
    "pretrain": "models",
    "finetune": "models",
    "reward": "models",
    "rlhf": "models",
}
DISTURBED = (*_KINDS, *_FAMILIES)
"""By name: stages of the chain, the first step of each, and families."""
TRAINED = tuple(name for name in DISTURBED if name not in ("corpus", "tokens"))
NAMES_OF_FAMILIES = frozenset(name.split()[1] for name in _FAMILIES)
"""Of their models."""
PRETRAINED = tuple(name for name in DISTURBED if name.startswith("pretrain"))
_OFTEN = {
    "pretrain": {"checkpoint_every": 5, "log_every": 1},
    "finetune": {"checkpoint_every": 2, "log_every": 1},
    "reward": {"checkpoint_every": 2, "log_every": 1},
    "rlhf": {"checkpoint_every": 1},
}
"""Says how, not what: the artifacts stay those of the quickstart."""


def steps(root: str) -> list[Step]:
    """All of them, in an order in which they can be run, with a checkpoint every few steps."""
    of_chain = chain(QuickstartConfig(root=root, scale="smoke"))
    base = next(step.config for step in of_chain if step.stage == "pretrain")
    families = []
    for name, model in _FAMILIES.items():
        changes = {"name": name.split()[1], "model": model, "seq_len": 64}
        families.append(Step("pretrain", base.model_copy(update=changes), name))
    return [
        Step(step.stage, step.config.model_copy(update=_OFTEN.get(step.stage, {})), step.title)
        for step in (*of_chain, *families)
    ]


def index_of(name: str) -> int:
    """The place of one of `DISTURBED`."""
    return next(i for i, step in enumerate(steps("")) if name in (step.stage, step.title))


def kind_of(step: Step) -> str | None:
    """Of the artifact that a step makes, if it is to be disturbed."""
    return _KINDS.get(step.stage)
