"""Packing keeps every bit of every dtype and shape."""

import torch

from pipelines.actors.weights import pack, unpack


def test_round_trip_is_exact_and_buckets_are_small():
    generator = torch.Generator().manual_seed(0)
    state = {
        "scalar": torch.randn((), generator=generator),
        "matrix": torch.randn(33, 17, generator=generator),
        "transposed": torch.randn(8, 5, generator=generator).T,
        "bf16": torch.randn(7, generator=generator).bfloat16(),
        "counter": torch.arange(3),
        "empty": torch.zeros(0, 4),
        "large": torch.randn(1000, generator=generator),
    }
    buckets, layout = pack(state, bucket_bytes=2304)
    assert len(buckets) > 1
    assert all(len(bucket) <= 2304 for bucket in buckets[:-1])
    received = unpack(buckets, layout)
    assert list(received) == list(state)
    for name, tensor in state.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)
