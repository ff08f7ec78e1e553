"""Where the tokens of shards are read from: files on a disk, or ranges of objects that are asked for ahead.

A batch of a shuffled stream is a few kilobytes each from many places. Memory maps make that cheap on a disk.
In object storage every sample is one ranged request, of which many are under way at once, and those of the
next batch are sent while this one is trained on. A worker thus reads its own share of the tokens and no more,
however large the shards are.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Protocol

import numpy as np

_MOST_MAPS = 4096  # Linux gives a process some 65,000
_MOST_EXPECTED = 1 << 16

Place = tuple[str, int, int]
"""File, offset and length, in tokens."""


class ShardFiles(Protocol):
    """Reads parts of .tok files, which it knows by their names."""

    def read(self, place: Place, file_tokens: int) -> np.ndarray:
        """(length,) tokens of a file of `file_tokens`. Raises ValueError if it is seen to have others."""
        ...

    def expect(self, places: Iterable[Place]) -> None:
        """These will be read soon."""
        ...


class MappedFiles:
    """Files below a folder, read through memory maps: what it returns are views, no copies."""

    def __init__(self, root: Path, dtype: np.dtype):
        self.root, self._dtype = root, dtype
        self._maps: dict[str, np.ndarray] = {}

    def read(self, place: Place, file_tokens: int) -> np.ndarray:
        file, offset, length = place
        if file not in self._maps:
            self.check(file, file_tokens)
            if len(self._maps) == _MOST_MAPS:
                del self._maps[next(iter(self._maps))]  # the oldest; views of it stay good
            self._maps[file] = np.asarray(np.memmap(self.root / file, dtype=self._dtype, mode="r"))
        return self._maps[file][offset : offset + length]

    def check(self, file: str, file_tokens: int) -> None:
        """Raises ValueError if the file's size is not that of so many tokens."""
        expected, found = file_tokens * self._dtype.itemsize, (self.root / file).stat().st_size
        if expected != found:
            raise ValueError(f"{self.root / file} has {found} bytes, shards.json says {expected}")

    def expect(self, places: Iterable[Place]) -> None:
        """The page cache looks after itself."""


class RangedFiles:
    """Objects of which ranges of bytes are asked for, many at once."""

    def __init__(self, read_range: Callable[[str, int, int], bytes], dtype: np.dtype, requests: Executor):
        """read_range(file, first byte, count) gives all of so many bytes, or raises.

        requests: the threads that call it, as many as there are to be under way at once.
        """
        self._read_range, self._dtype, self._requests = read_range, dtype, requests
        self._expected: dict[Place, Future[np.ndarray]] = {}

    def read(self, place: Place, file_tokens: int) -> np.ndarray:
        expected = self._expected.pop(place, None)
        return expected.result() if expected is not None else self._get(place)

    def expect(self, places: Iterable[Place]) -> None:
        for place in places:
            if place not in self._expected:
                if len(self._expected) == _MOST_EXPECTED:
                    self._expected.pop(next(iter(self._expected))).cancel()  # the oldest: nobody came for it
                self._expected[place] = self._requests.submit(self._get, place)

    def _get(self, place: Place) -> np.ndarray:
        file, offset, length = place
        size = self._dtype.itemsize
        return np.frombuffer(self._read_range(file, offset * size, length * size), dtype=self._dtype)
