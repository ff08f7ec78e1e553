"""Weights on their way from a learner to engines: flat byte buckets in Ray's object store.

One `ray.put` a bucket gives one copy a node, however many engines read it, and the copies outlive the
engines: one that is restarted fetches the same ones. Flat numpy bytes are read without a copy, which torch
tensors are not.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor

BUCKET_BYTES = 64 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Place:
    """Where one tensor lies."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bucket: int
    offset: int


@dataclass(frozen=True)
class PublishedWeights:
    """References to the buckets of one version, and what lies where in them."""

    version: int
    layout: tuple[Place, ...]
    buckets: tuple[ray.ObjectRef, ...]


def publish(state: dict[str, Tensor], version: int) -> PublishedWeights:
    """Put a copy of `state` into the object store: later changes of its tensors change nothing."""
    buckets, layout = pack(state)
    return PublishedWeights(version, layout, tuple(ray.put(bucket) for bucket in buckets))


def pack(
    state: dict[str, Tensor], bucket_bytes: int = BUCKET_BYTES
) -> tuple[list[np.ndarray], tuple[Place, ...]]:
    """(uint8 buckets, layout). A bucket holds at most `bucket_bytes`, except for one tensor larger than
    that.
    """
    layout: list[Place] = []
    sizes: list[int] = []
    for name, tensor in state.items():
        size = math.ceil(tensor.nbytes / ALIGNMENT) * ALIGNMENT
        if not sizes or sizes[-1] + size > bucket_bytes:
            sizes.append(0)
        layout.append(Place(name, tensor.dtype, tuple(tensor.shape), len(sizes) - 1, sizes[-1]))
        sizes[-1] += size
    buckets = [np.zeros(size, dtype=np.uint8) for size in sizes]
    for place in layout:
        flat = state[place.name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        buckets[place.bucket][place.offset : place.offset + len(flat)] = flat
    return buckets, tuple(layout)


def unpack(buckets: Sequence[np.ndarray], layout: Sequence[Place]) -> dict[str, Tensor]:
    """The tensors, as views of the buckets: read them, do not write to them."""
    state: dict[str, Tensor] = {}
    for place in layout:
        size = math.prod(place.shape) * place.dtype.itemsize
        flat = buckets[place.bucket][place.offset : place.offset + size]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the object store's memory is read-only
            state[place.name] = torch.from_numpy(flat).view(place.dtype).view(place.shape)
    return state
