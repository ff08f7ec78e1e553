"""The files that hold tensors: safetensors, or pickles of tensors; one, or several with an index."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm.models.hugging_face.fields import Unsupported

MAX_FILE_BYTES = 5 * 10**9
_WEIGHTS = (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))


def weight_files(directory: Path) -> list[Path]:
    """The files with weights; safetensors where there are both.

    With an index they are those that it names, so that other files beside them do not matter. Raises
    Unsupported if there are none, or one that the index names is missing.
    """
    for single, pattern in _WEIGHTS:
        index = directory / f"{single}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            for name in names:
                if not (directory / name).is_file():
                    raise Unsupported(f"{index} names {name}, which is not there; fetch it, too")
            return [directory / name for name in names]
        if (directory / single).is_file():
            return [directory / single]
        if found := sorted(directory.glob(pattern)):
            return found
    raise Unsupported(
        f"{directory}: there is neither model.safetensors nor pytorch_model.bin, whole or in parts"
    )


class Weights:
    """Tensors by name, read from disk when asked for."""

    def __init__(self, directory: Path) -> None:
        self._sources: dict[str, _Source] = {}
        for file in weight_files(directory):
            source = _Safetensors(file) if file.suffix == ".safetensors" else _Pickle(file)
            for name in source.names:
                self._sources[name] = source

    @property
    def names(self) -> set[str]:
        return set(self._sources)

    def read(self, name: str) -> Tensor:
        """The tensor as it is in the file."""
        return self._sources[name].read(name)


class _Safetensors:
    def __init__(self, file: Path) -> None:
        try:
            self._open = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise Unsupported(f"{file}: damaged ({error}); fetch it again") from None
        self.names: list[str] = list(self._open.keys())

    def read(self, name: str) -> Tensor:
        return self._open.get_tensor(name)


class _Pickle:
    """Loaded with `weights_only=True`: nothing in it can run."""

    def __init__(self, file: Path) -> None:
        try:
            # Files older than torch 1.6 are no archives and cannot be mapped into memory.
            self._tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_archive(file))
        except Exception as error:  # many kinds, all of which mean this
            raise Unsupported(f"{file}: not a file of tensors alone ({_first_line(error)})") from None
        self.names = list(self._tensors)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


_Source = _Safetensors | _Pickle


def _is_archive(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_weights(
    directory: Path, tensors: Iterator[tuple[str, Tensor]], sizes: dict[str, int], max_bytes: int
) -> None:
    """Write tensors, which come in the order of `sizes`, to files of at most `max_bytes` each.

    sizes: bytes by name. A file's tensors are in memory together, and no more than that. A tensor that is
    larger has a file of its own.
    """
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    file_of: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = (
            f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        )
        save_file(dict(islice(tensors, len(group))), directory / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(file_of.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
