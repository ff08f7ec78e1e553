"""Peak matmul speed of a device: what model FLOPs utilisation (MFU) is a fraction of."""

import time

import torch

# Dense tensor-core peaks from the vendors' data sheets, FLOP/s in bf16.
_GPU_PEAK_BF16 = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "MI300X": 1307e12,
}


class PeakFlops:
    """FLOP/s that matmuls could reach on a device: a known GPU's data sheet, else the best ever measured.

    A device may have no units for `dtype` and be slower in it than in fp32. That is no reason to expect less.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtypes = device, {dtype, torch.float32}
        self._known = data_sheet_flops(device) if dtype == torch.bfloat16 else None
        self._best = self._known or self._measure(seconds=0.25)

    def now(self, reached: float = 0.0) -> float:
        """The peak by all that is known so far.

        A CPU is measured again, for some milliseconds: one that others used while the run began would make
        every later step look better than it is.

        reached: FLOP/s that a run has come to; a peak that was measured is no less.
        """
        if self._known is None:
            again = self._measure(seconds=0.002) if self._device.type == "cpu" else 0.0
            self._best = max(self._best, again, reached)
        return self._best

    def _measure(self, seconds: float) -> float:
        size = 512 if self._device.type == "cpu" else 4096
        return max(measured_matmul_flops(self._device, each, size, seconds) for each in self._dtypes)


def data_sheet_flops(device: torch.device) -> float | None:
    """What its maker says that a GPU multiplies at in bf16, FLOP/s; None of a CPU, or if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next(
        (peak for known, peak in _GPU_PEAK_BF16.items() if all(word in name for word in known.split())), None
    )


def measured_matmul_flops(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    """The best FLOP/s of square matmuls within about `seconds`, on the threads this process uses.

    The matrices are small on a CPU's account: many tries find a moment in which nobody else computes. A GPU
    is given several products at a time, so that none waits for the program; and random numbers, since it
    multiplies ones on less power, and so faster.
    """
    on_gpu = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    products = 8 if on_gpu else 1
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        for _ in range(products):
            a @ a
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / products)
    return 2 * size**3 / best
