"""Which floating-point type a device should train in."""

import platform
from typing import Literal

import torch
import torch.distributed as dist

Precision = Literal["bf16", "fp32"]


class PrecisionError(ValueError):
    """A run cannot go on in the precision that it was begun in."""


def choose_precision(wanted: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
    """`wanted`, or for "auto" bf16 if the device of every rank multiplies it in hardware, else fp32.

    Without such hardware torch falls back to loops: bf16 is then a hundred times slower than fp32.
    """
    if wanted != "auto":
        return wanted
    native = torch.tensor(int(has_native_bf16(device)), device=device)
    if dist.is_initialized():
        dist.all_reduce(native, dist.ReduceOp.MIN)
    return "bf16" if native.item() else "fp32"


def keep_precision(
    wanted: Literal["auto", "bf16", "fp32"], saved: Precision | None, device: torch.device
) -> Precision:
    """`choose_precision`, but a run that was begun in another precision, `saved`, goes on in that.

    Raises:
        PrecisionError: it was begun in bf16, which a device here would take a hundred times as long for.
    """
    chosen = choose_precision(wanted, device)
    if wanted == "auto" and (saved, chosen) == ("bf16", "fp32"):
        raise PrecisionError("was trained in bf16, which not all devices here multiply: they would use fp32")
    return saved or chosen


def has_native_bf16(device: torch.device) -> bool:
    """Whether matmuls in bf16 run on units made for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
