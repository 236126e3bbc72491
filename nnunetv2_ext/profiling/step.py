"""Seconds of a network's modules and of its training step, and the step's peak memory.

Run as a module, with a subject's description as JSON on the standard input, it prints the peak in bytes on the CPU.
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2_ext.errors import InputError
from nnunetv2_ext.profiling.count import WHOLE, Watch, on_meta, run_forward, tabulated_names, with_those_below
from nnunetv2_ext.profiling.subject import Subject, find_subject
from nnunetv2_ext.resident_memory import rise
from nnunetv2_ext.text import one_line

WARM_UP_STEPS = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True)
class Measured:
    """What a training step of a batch costs.

    Attributes:
        forward_seconds: median by module, with all that lies below it.
        step_seconds: forward and backward, of every round.
        peak_bytes: highest memory during a step, weights, input and gradients included.
    """

    forward_seconds: Mapping[str, float]
    step_seconds: list[float]
    peak_bytes: int

    @property
    def median_step_seconds(self) -> float:
        return statistics.median(self.step_seconds)


def measure(
    subject: Subject,
    *,
    depth: int = 2,
    batch_size: int = 2,
    rounds: int = 3,
    device: str = "cpu",
    progress: bool = False,
) -> Measured:
    """Time and peak memory of a subject's network in training mode, after a warm-up.

    The loss is the sum over all outputs of their mean square; no optimizer. CPU: float32, peak in a process of its own,
    see `resident_memory`. CUDA: autocast to float16 as nnU-Net trains, without its gradient scaler and without
    torch.compile; time by events, peak of the allocator.

    Raises:
        InputError: numbers below 1, no such device, too little memory, or a patch on which the network fails.
    """
    if batch_size < 1 or rounds < 1:
        raise InputError(f"a batch of {batch_size}, {rounds} rounds", "at least 1 of both", "correct it")
    kind = torch.device(device).type
    if kind not in WARM_UP_STEPS or (kind == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"the device {device}", "cpu, or cuda where PyTorch sees a GPU", "use -device cpu")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            return _measure(subject, depth, batch_size, rounds, torch.device(device), progress)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {batch_size} that does not fit into the memory of {device}", "one that does", "lower the batch"
        ) from error


def _measure(
    subject: Subject, depth: int, batch_size: int, rounds: int, device: torch.device, progress: bool
) -> Measured:
    cuda = device.type == "cuda"
    if cuda:
        torch.randn(64, 64, device=device).matmul(torch.randn(64, 64, device=device))  # the library's workspace
    held = torch.cuda.memory_allocated() if cuda else 0
    network = subject.build().to(device).train()
    x = torch.randn(batch_size, *subject.shape, device=device)
    for _ in range(WARM_UP_STEPS[device.type]):
        training_step(network, x)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    steps: list[float] = []
    forwards: list[dict[str, float]] = []
    with tqdm(total=rounds + 1, desc="rounds and peak", file=sys.stderr, disable=not progress) as bar:
        for _ in range(rounds):
            clock = _CudaClock() if cuda else _Clock()
            clock.charge("step")
            training_step(network, x)
            clock.charge("step")
            steps.append(clock.seconds()["step"])
            network.zero_grad(set_to_none=True)
            forwards.append(_forward_seconds(network, x, depth, _CudaClock() if cuda else _Clock()))
            bar.update()
        names = tabulated_names(network, depth)
        del network, x
        gc.collect()
        peak = torch.cuda.max_memory_allocated() - held if cuda else _cpu_peak(subject, batch_size)
        bar.update()
    return Measured(
        {name: statistics.median(with_those_below(seconds, name) for seconds in forwards) for name in names},
        steps,
        peak,
    )


def training_step(network: nn.Module, x: Tensor) -> None:
    """Forward and backward with fresh gradients, in half precision on CUDA."""
    network.zero_grad(set_to_none=True)
    loss(_forward(network, x)).backward()


def loss(outputs: Any) -> Tensor:
    """The sum of the mean squares of the outputs, a tensor or a list of them."""
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    return torch.stack([output.float().square().mean() for output in tensors]).sum()


def _forward(network: nn.Module, x: Tensor) -> Any:
    with torch.autocast(x.device.type, dtype=torch.float16, enabled=x.device.type == "cuda"):
        return run_forward(network, x)


class _Clock:
    """Charges the time since the last charge to a name; the first charge starts it."""

    def __init__(self) -> None:
        self._charges: list[tuple[str, Any]] = []

    def charge(self, name: str) -> None:
        self._charges.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by name."""
        totals: dict[str, float] = defaultdict(float)
        for (_, start), (name, end) in zip(self._charges, self._charges[1:], strict=False):
            totals[name] += self._between(start, end)
        return totals

    def _now(self) -> Any:
        return time.perf_counter()

    def _between(self, start: Any, end: Any) -> float:
        return end - start


class _CudaClock(_Clock):
    """The same by events on the GPU's own time line, so that the launches need not wait."""

    def _now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


def _forward_seconds(network: nn.Module, x: Tensor, depth: int, clock: _Clock) -> dict[str, float]:
    clock.charge(WHOLE)
    with Watch(network, depth, clock.charge):
        _forward(network, x)
    return clock.seconds()


def _cpu_peak(subject: Subject, batch_size: int) -> int:
    return measured_alone(subject, batch_size, rounds=0)[1]


def measured_alone(subject: Subject, batch_size: int, *, rounds: int, device: str = "cpu") -> tuple[list[float], int]:
    """The seconds of each step and the peak memory of a subject, in a fresh process.

    Raises:
        InputError: what `measure` refuses, or a process that came to no end, as one that the system kills for memory.
    """
    question = {"description": subject.description, "batch_size": batch_size, "rounds": rounds, "device": device}
    command = [sys.executable, "-m", "nnunetv2_ext.profiling.step"]
    process = subprocess.run(command, input=json.dumps(question), stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        raise InputError(
            f"a process measuring the memory of a batch of {batch_size} that ended with {process.returncode}",
            "0; the system may have ended it for want of memory",
            "lower the batch or the patch",
        )
    answer = json.loads(process.stdout.splitlines()[-1])
    if "refused" in answer:
        raise InputError(*answer["refused"])
    return answer["seconds"], answer["peak_bytes"]


def steps_and_peak(subject: Subject, batch_size: int, rounds: int) -> tuple[list[float], int]:
    """On the CPU, in this process: the peak memory of building the network and two training steps, and times of more.

    Raises:
        InputError: too little memory.
    """
    on_meta(subject.build)  # its imports are no part of the figure
    held: list[Any] = []

    def run() -> None:
        held[:] = subject.build().train(), torch.randn(batch_size, *subject.shape)
        for _ in range(2):
            training_step(*held)

    try:
        peak, seconds = rise(run), []
        for _ in range(rounds):
            start = time.perf_counter()
            training_step(*held)
            seconds.append(time.perf_counter() - start)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        told = f"a batch of {batch_size} that does not fit into the memory ({one_line(error)})"
        raise InputError(told, "one that does", "lower the batch or the patch") from error
    return seconds, peak


def main() -> int:
    """Answer the question of `measured_alone`."""
    question = json.load(sys.stdin)
    batch_size, rounds, device = question["batch_size"], question["rounds"], question["device"]
    try:
        subject = find_subject(**question["description"])
        if device == "cpu":
            seconds, peak = steps_and_peak(subject, batch_size, rounds)
        else:
            measured = measure(subject, depth=0, batch_size=batch_size, rounds=rounds, device=device)
            seconds, peak = measured.step_seconds, measured.peak_bytes
        answer: dict[str, Any] = {"seconds": seconds, "peak_bytes": peak}
    except InputError as error:
        answer = {"refused": error.args}
    sys.stdout.write(f"{json.dumps(answer)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
