"""A `config.json` of theirs, read field by field: what cannot be imported is refused by name."""

import json
from pathlib import Path
from typing import Any

from llm.models.config import Activation, RopeScaling

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Their names of activations, and ours."""


class Unsupported(ValueError):
    """One line: file, field, value, and what can be imported or exported."""


class Fields:
    """The fields of a config.json."""

    def __init__(self, values: dict[str, Any], file: Path) -> None:
        self.values, self.file = values, file

    @classmethod
    def read(cls, file: Path) -> "Fields":
        """Raises Unsupported if the file is not there or is not a JSON object."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Unsupported(
                f"{file}: there is no such file; give a Hugging Face directory (config.json and weights)"
            ) from None
        except (OSError, ValueError) as error:
            raise Unsupported(f"{file}: cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise Unsupported(f"{file}: expected a JSON object, found {type(values).__name__}")
        return cls(values, file)

    def get(self, name: str, default: Any) -> Any:
        """A field; the default, which is theirs, if it is left out or null."""
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name: str, default: float | None = None) -> Any:
        """A number; raises Unsupported if it is none, or missing without a default."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refusal(name, value, "a number is needed")
        return value

    def activation(self, name: str, default: str) -> Activation:
        """Our name of an activation; raises Unsupported for others than `ACTIVATIONS`."""
        value = self.get(name, default)
        if value not in ACTIVATIONS:
            raise self.refusal(name, value, f"{', '.join(ACTIVATIONS)} can be imported")
        return ACTIVATIONS[value]

    def require(self, **needed: Any) -> None:
        """Raise Unsupported if a field has another value than the one we have; left out, it has that one."""
        for name, value in needed.items():
            if self.get(name, value) != value:
                raise self.refusal(name, self.values[name], f"only {json.dumps(value)} can be imported")

    def refusal(self, name: str, value: Any, mend: str) -> Unsupported:
        """What to raise for a field."""
        return Unsupported(f"{self.file}: {name} is {json.dumps(value)}; {mend}")


def their_activation(activation: Activation) -> str:
    """Their name of an activation of ours."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


def rope_fields(fields: Fields, max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """Base of the rotary frequencies and their scaling, as old and new versions of transformers write them.

    Raises Unsupported for a scaling that we do not have.
    """
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = Fields(fields.get(name, {}), fields.file)
    theta = rope.get("rope_theta", fields.number("rope_theta", 10000.0))
    rope.require(partial_rotary_factor=1.0)
    fields.require(partial_rotary_factor=1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        raise fields.refusal(f"{name}.rope_type", kind, "default, linear, llama3 and yarn can be imported")
    factor = rope.number("factor")
    original = rope.number(
        "original_max_position_embeddings", fields.number("original_max_position_embeddings", max_seq_len)
    )
    turns: dict[str, Any] = {}
    if kind == "llama3":
        turns = {
            "low_frequency": rope.number("low_freq_factor"),
            "high_frequency": rope.number("high_freq_factor"),
        }
    if kind == "yarn":
        rope.require(truncate=True)
        for unknown in ("attention_factor", "mscale", "mscale_all_dim"):
            if rope.values.get(unknown) is not None:
                value = rope.values[unknown]
                raise fields.refusal(f"{name}.{unknown}", value, "yarn can be imported without that field")
        turns = {"low_frequency": rope.number("beta_slow", 1), "high_frequency": rope.number("beta_fast", 32)}
    return theta, RopeScaling(kind=kind, factor=factor, original_max_seq_len=original, **turns)


def their_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The field `rope_scaling`."""
    if scaling is None:
        return None
    theirs: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        theirs["original_max_position_embeddings"] = scaling.original_max_seq_len
    low, high = scaling.low_frequency, scaling.high_frequency
    if scaling.kind == "llama3":
        theirs |= {"low_freq_factor": low, "high_freq_factor": high}
    if scaling.kind == "yarn":
        theirs |= {"beta_slow": low, "beta_fast": high}
    return theirs
