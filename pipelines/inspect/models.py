"""``manta models``: the presets there are, and what one of them takes."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import tyro
from pydantic import Field

from cluster.errors import UserError
from llm.models.config import ModelConfig
from llm.models.parameters import parameter_parts
from llm.models.presets import PRESETS, model_config, nearest_preset
from llm.planning.flops import training_flops_per_token
from llm.planning.memory import Step, TrainingMemory, training_memory
from pipelines.inspect.format import format_bytes
from pipelines.stage_config import Frozen

_RANKS = (1, 8, 64, 512)
COLUMNS = {
    "preset": "preset",
    "family": "family",
    "shape": "shape",
    "context": "context",
    "parameters": "parameters",
    "parameters_in_blocks": "in blocks",
    "training_flops_per_token": "FLOPs/token",
    "source": "source",
}
"""Of the table: field and heading."""


class ModelsConfig(Frozen):
    """List the model presets: shape, parameters and FLOPs. Or show one, with the memory to train it."""

    preset: Annotated[str | None, tyro.conf.Positional] = None
    """Which one to show; default: list all."""
    micro_batch: int = Field(default=1, gt=0)
    """Sequences on a device at a time, for the memory."""
    seq_len: int | None = Field(default=None, gt=0)
    """Tokens of each; default: the preset's context."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def run(config: ModelsConfig) -> None:
    """Print all presets, or one, for people or for programs."""
    if config.preset is None:
        listed = [facts(name) for name in PRESETS]
        print(json.dumps(listed, indent=2)) if config.as_json else _print_list(listed)
        return
    if config.preset not in PRESETS:
        raise UserError(f"no preset {config.preset!r}; {nearest_preset(config.preset)}")
    shown = facts(config.preset) | _details(config)
    print(json.dumps(shown, indent=2)) if config.as_json else _print_one(shown)


def facts(preset: str) -> dict[str, Any]:
    """What the list says of a preset, at the vocabulary that was published with it.

    FLOPs are of a token in a row as long as the context (an encoder-decoder reads as many as it writes).
    """
    shape = model_config(preset)
    parts = parameter_parts(shape, shape.vocab_size)
    total = sum(parts.values())
    return {
        "preset": preset,
        "family": shape.family,
        "layers": shape.n_layers,
        "encoder_layers": shape.n_encoder_layers,
        "d_model": shape.d_model,
        "heads": shape.n_heads,
        "kv_heads": shape.n_kv_heads,
        "d_ff": shape.d_ff,
        "experts": shape.n_experts,
        "experts_per_token": shape.experts_per_token,
        "context": shape.max_seq_len,
        "vocabulary": shape.vocab_size,
        "parameters": total,
        "parameters_in_blocks": total - parts["embeddings"] - parts["head"],
        "training_flops_per_token": training_flops_per_token(shape, shape.max_seq_len),
        "source": PRESETS[preset].source,
    }


def _details(config: ModelsConfig) -> dict[str, Any]:
    assert config.preset is not None
    shape = model_config(config.preset)
    length = config.seq_len or shape.max_seq_len
    if length > shape.max_seq_len:
        raise UserError(f"--seq-len {length}: {config.preset} has a context of {shape.max_seq_len} tokens")
    return {
        "parameters_by_part": parameter_parts(shape, shape.vocab_size),
        "fields": shape.model_dump(mode="json", exclude_defaults=True),
        "training_memory": {
            "micro_batch": config.micro_batch,
            "seq_len": length,
            "precision": "bf16",
            "per_gpu": [_memory(shape, config.micro_batch, length, gpus) for gpus in _RANKS],
        },
    }


def _memory(shape: ModelConfig, micro_batch: int, length: int, gpus: int) -> dict[str, Any]:
    """Bytes of one GPU by part, without and with activation checkpointing."""

    def estimate(checkpointing: bool) -> TrainingMemory:
        return training_memory(shape, Step(micro_batch, length, ranks=gpus, checkpointing=checkpointing))

    whole, checkpointed = estimate(False), estimate(True)
    return {
        "gpus": gpus,
        **{part: size for part, size in asdict(whole).items() if part != "accumulates"},
        "peak": whole.peak,
        "checkpointed_activations": checkpointed.activations,
        "checkpointed_peak": checkpointed.peak,
    }


def row(fact: dict[str, Any]) -> list[str]:
    """The cells of a preset's line, in the order of `COLUMNS`."""
    texts = fact | {
        "shape": shape_of(fact),
        "context": f"{fact['context']:,}",
        "parameters": scaled(fact["parameters"]),
        "parameters_in_blocks": scaled(fact["parameters_in_blocks"]),
        "training_flops_per_token": scaled(fact["training_flops_per_token"]),
    }
    return [texts[column] for column in COLUMNS]


def shape_of(fact: dict[str, Any]) -> str:
    """``32 × 4096, 32/8 heads, ff 14336``: blocks × width, heads of queries and of keys, hidden layer."""
    blocks = f"{fact['encoder_layers']}+{fact['layers']}" if fact["encoder_layers"] else f"{fact['layers']}"
    heads = f"{fact['heads']}" if fact["heads"] == fact["kv_heads"] else f"{fact['heads']}/{fact['kv_heads']}"
    experts = f", {fact['experts_per_token']} of {fact['experts']} experts" if fact["experts"] else ""
    return f"{blocks} × {fact['d_model']}, {heads} heads, ff {fact['d_ff']}{experts}"


def scaled(count: float) -> str:
    """``8030261248`` → ``8.03B``."""
    for unit in ("", "K", "M", "B", "T"):
        if count < 999.5 or unit == "T":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _print_list(listed: list[dict[str, Any]]) -> None:
    cells = [list(COLUMNS.values())] + [row(fact) for fact in listed]
    _print_columns(cells, right=(3, 4, 5, 6))
    print("\n`manta models PRESET` shows one; parameters are counted with the published vocabulary.")


def _print_one(shown: dict[str, Any]) -> None:
    print(f"{shown['preset']}  {shown['family']}, {shape_of(shown)}\n{shown['source']}\n")
    print(f"{shown['parameters']:,} parameters with a vocabulary of {shown['vocabulary']:,}")
    for part, count in shown["parameters_by_part"].items():
        if count:
            print(f"  {part:<13} {count:>18,}")
    flops = scaled(shown["training_flops_per_token"])
    print(f"{flops} FLOPs to train on one token, in rows of {shown['context']:,}\n\nfields")
    for name, value in shown["fields"].items():
        print(f"  {name}: {value}")
    memory = shown["training_memory"]
    print(
        f"\nmemory per GPU to train in {memory['precision']}, {memory['micro_batch']} × "
        f"{memory['seq_len']:,} tokens at a time (docs/models.md)"
    )
    header = ["GPUs", "weights", "optimizer", "gradients", "activations", "peak", "with checkpointing"]
    columns = ("weights", "optimizer", "gradients", "activations", "peak", "checkpointed_peak")
    lines = [
        [f"{each['gpus']}", *(format_bytes(each[column]) for column in columns)] for each in memory["per_gpu"]
    ]
    _print_columns([header, *lines], right=tuple(range(7)))


def _print_columns(cells: list[list[str]], right: tuple[int, ...]) -> None:
    """Aligned columns. (A table of rich's takes longer to load than all else here.)"""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        aligned = [
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())
