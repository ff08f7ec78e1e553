"""Peak matmul speed of a device: what model FLOPs utilisation (MFU) is a fraction of."""

import time

import torch

# Dense tensor-core peaks from the vendors' data sheets, FLOP/s in bf16.
_GPU_PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "MI300X": 1307e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that matmuls could reach on `device`: the data sheet's for a known GPU, else measured.

    A device may have no units for `dtype` and be slower in it than in fp32. That is no reason to expect less.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in _GPU_PEAK_BF16.items():
            if all(word in name for word in known.split()):
                return peak
    size = 512 if device.type == "cpu" else 4096
    return max(measured_matmul_flops(device, each, size) for each in {dtype, torch.float32})


def measured_matmul_flops(
    device: torch.device, dtype: torch.dtype, size: int, seconds: float = 0.25
) -> float:
    """The best FLOP/s of square matmuls within about `seconds`, on the threads this process uses.

    The matrices are small on a CPU's account: a hundred tries find a moment in which nobody else computes.
    """
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
