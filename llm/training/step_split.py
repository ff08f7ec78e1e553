"""Where a step's seconds go: forward, backward, optimizer. Seen from outside; the step does not know of it.

On a CPU the clock is read where one part ends and another begins. On a GPU the program runs ahead of the
device, so events are put into its stream there, and read when they have come to pass: nothing is waited for.
What the parts leave of a step is summing over ranks, clipping, and waiting for data.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

Mark = Any
"""A moment: seconds on a CPU's clock, or an event of a GPU."""


class StepSplit:
    """Adds up the seconds of each part.

    Args:
        device: that the model is on.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._parts: list[tuple[str, Mark, Mark]] = []

    def forward(self, loss_sum: Callable[..., Any]) -> Callable[..., Any]:
        """`loss_sum` of a micro-batch, its forward pass timed, and the backward pass from its loss."""

        def timed(*micro_batch: Tensor) -> Any:
            began = self._mark()
            result = loss_sum(*micro_batch)
            loss = result[0] if isinstance(result, tuple) else result
            if torch.is_grad_enabled() and loss.requires_grad:
                self._ends("forward", began)
                loss.register_hook(self._backward_begins)
            return result

        return timed

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Time the steps of an optimizer."""
        began: list[Mark] = []
        optimizer.register_step_pre_hook(lambda *_: began.append(self._mark()))
        optimizer.register_step_post_hook(lambda *_: self._ends("optimizer", began.pop()))

    def take(self) -> dict[str, float]:
        """`forward_seconds` and so on since the last call. A part that a GPU is still at comes with the
        next.
        """
        seconds: dict[str, float] = defaultdict(float)
        under_way: list[tuple[str, Mark, Mark]] = []
        for part in self._parts:
            name, began, ended = part
            if not self._on_gpu:
                seconds[f"{name}_seconds"] += ended - began
            elif ended.query():
                seconds[f"{name}_seconds"] += began.elapsed_time(ended) / 1000
            else:
                under_way.append(part)
        self._parts = under_way
        return dict(seconds)

    def _backward_begins(self, gradient: Tensor) -> None:
        began = self._mark()
        # Called by autograd when all of this backward pass is done.
        Variable._execution_engine.queue_callback(lambda: self._ends("backward", began))  # type: ignore[attr-defined]

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _ends(self, name: str, began: Mark) -> None:
        self._parts.append((name, began, self._mark()))
