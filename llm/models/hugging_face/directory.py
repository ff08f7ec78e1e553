"""A Hugging Face directory, read and written: config.json, weights, tokenizer.

What is imported computes what transformers computes, and what is exported is loaded by transformers
unchanged, and vLLM too. Weights become fp32 on their way in.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from llm.models.config import ModelConfig
from llm.models.hugging_face.bert import BERT
from llm.models.hugging_face.family import Family
from llm.models.hugging_face.fields import Fields, Unsupported
from llm.models.hugging_face.gpt2 import GPT2
from llm.models.hugging_face.llama import LLAMA
from llm.models.hugging_face.mixtral import MIXTRAL
from llm.models.hugging_face.names import Read
from llm.models.hugging_face.qwen3 import QWEN3
from llm.models.hugging_face.t5 import T5
from llm.models.hugging_face.tokenizer import Added, export_tokenizer
from llm.models.hugging_face.weight_files import MAX_FILE_BYTES, Weights, write_weights
from llm.models.load import build

FAMILIES = (LLAMA, QWEN3, MIXTRAL, GPT2, T5, BERT)
_CONFIG = "config.json"
_NAMED = 3
"""Tensors that a message names."""


def import_model(directory: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """Weights under our names in fp32, and the shape, of the language model in a directory.

    Raises Unsupported, in one line, for what we do not have or what is not there.
    """
    fields = Fields.read(directory / _CONFIG)
    family = _family_of(fields)
    weights = Weights(directory)
    stored = {_renamed(name, family): name for name in weights.names}
    config = _our_config(fields, family, set(stored))
    return dict(_our_tensors(weights, stored, family, config, directory)), config


def export_model(
    read: Read,
    config: ModelConfig,
    directory: Path,
    *,
    tokenizer_model: bytes | None = None,
    added_pieces: Sequence[str] = (),
    special_ids: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a directory that `AutoModelFor…` and `AutoTokenizer` load.

    Args:
        read: a parameter of ours by its name; each is read once, in order.
        added_pieces: what the model has after the tokenizer's ids, if it has so many more.
        special_ids: entries such as {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}.

    Raises Unsupported if no family has all that the model has.
    """
    family = exporting_family(config)
    directory.mkdir(parents=True, exist_ok=True)
    ids = dict(special_ids or {})
    if config.family == "encoder-decoder" and "pad_token_id" in ids:
        ids.setdefault("decoder_start_token_id", ids["pad_token_id"])
    theirs = family.their_config(config)
    described = {
        "architectures": [family.architectures[theirs["model_type"]]],
        **theirs,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **ids,
    }
    _write_json(directory / _CONFIG, described)
    _write_json(directory / "generation_config.json", ids)
    tensors = (
        (name, tensor.detach().to("cpu", dtype).contiguous())
        for name, tensor in family.to_theirs(read, config)
    )
    without_values = build(config).state_dict()
    sizes = {
        name: tensor.numel() * dtype.itemsize
        for name, tensor in family.to_theirs(without_values.__getitem__, config)
    }
    write_weights(directory, tensors, sizes, max_file_bytes)
    if tokenizer_model is not None:
        added = Added(config.vocab_size, added_pieces)
        export_tokenizer(tokenizer_model, directory, ids, config.max_seq_len, added)


def exporting_family(config: ModelConfig) -> Family:
    """The family that has all that this model has. Raises Unsupported, naming what none has."""
    fits = [(family, family.misfits(config)) for family in FAMILIES]
    nearest, misfits = min(fits, key=lambda fit: ("family" in fit[1], len(fit[1])))
    if misfits:
        named = ", ".join(
            f"{name}={getattr(config, name)} where it has {value}" for name, value in misfits.items()
        )
        raise Unsupported(
            f"no model of transformers' has this shape; the nearest is {_types(nearest)}, but {named}"
        )
    return nearest


def _our_tensors(
    weights: Weights, stored: dict[str, str], family: Family, config: ModelConfig, directory: Path
) -> Iterator[tuple[str, Tensor]]:
    """stored: names in the files by the names of `family.pairs`."""
    pairs, same = family.pairs(config), family.same(config)
    needed = {name for pair in pairs for name in pair.theirs}
    for copy, original in same.items():
        if copy in stored and original not in stored:
            stored[original] = stored[copy]
        elif copy in stored and not torch.equal(weights.read(stored[copy]), weights.read(stored[original])):
            raise Unsupported(
                f"{directory}: {stored[copy]} differs from {stored[original]}, and {_CONFIG} says that "
                "they are tied; mend tie_word_embeddings there"
            )
    unused = re.compile("|".join(family.unused) or r"(?!)")
    unexpected = {name for name in stored if not unused.fullmatch(name)} - needed - set(same)
    for names, problem in ((needed - set(stored), "lacks"), (unexpected, "has, and we do not,")):
        if names:
            raise Unsupported(f"{directory}: the checkpoint {problem} {_listed(names)}")
    shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    for pair in pairs:
        try:
            yield pair.ours, pair.from_theirs(lambda name: weights.read(stored[name]), shapes[pair.ours])
        except ValueError as error:
            raise Unsupported(f"{directory}: {error}") from None


def _family_of(fields: Fields) -> Family:
    model_type = fields.values.get("model_type")
    for family in FAMILIES:
        if model_type in family.architectures:
            return family
    possible = ", ".join(_types(family) for family in FAMILIES)
    raise fields.refusal("model_type", model_type, f"{possible} can be imported")


def _our_config(fields: Fields, family: Family, names: set[str]) -> ModelConfig:
    ours = family.our_config(fields, names)
    try:
        return ModelConfig(**(family.always | ours))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise Unsupported(f"{fields.file}: {place}: {first['msg']}".replace(": :", ":")) from None


def _renamed(name: str, family: Family) -> str:
    for pattern, replacement in family.renamed:
        name = re.sub(pattern, replacement, name)
    return name


def _types(family: Family) -> str:
    return ", ".join(family.architectures)


def _listed(names: set[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
