"""The protocol: contenders in turn, ratios within a round, memory in a process of its own.

Time: all contenders run in turn within each round, in another order each time, and a ratio is the
median over rounds of the ratio within one round; what else the machine does then falls on all
alike. The reference stands twice in the round: its ratio to itself (A/A) says how far to trust the
others.

Memory on the CPU: of one call in a process of its own that has run a smaller image before, as Linux
counts it (VmHWM, reset before the call). On CUDA: what torch has allocated at the peak.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parent.parent

AGAIN = " again"
"""What follows the name of the reference where it stands for the second time."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""What glibc's malloc.h calls these settings."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Device:
    """Where everything runs.

    Args:
        name: "cpu" or "cuda".
    """

    name: str = "cpu"

    def __post_init__(self) -> None:
        if self.name not in ("cpu", "cuda"):
            raise ValueError(f"device is {self.name!r}; accepted: 'cpu' or 'cuda'")
        if self.name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda'; accepted: 'cpu', since torch sees no card")

    @property
    def modes(self) -> tuple[str, ...]:
        """The settings that a table is repeated for."""
        if self.name == "cpu":
            return ("",)
        return ("TF32 off", "TF32 on", "TF32 off, deterministic")

    @contextlib.contextmanager
    def mode(self, name: str) -> Iterator[None]:
        """Run under one of the modes."""
        if not name:
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
        try:
            matmul.allow_tf32 = cudnn.allow_tf32 = "TF32 on" in name
            torch.use_deterministic_algorithms("deterministic" in name, warn_only=True)
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
            torch.use_deterministic_algorithms(before[2])

    def synchronise(self) -> None:
        """Wait for what was started."""
        if self.name == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Call) -> float:
        """How long a call takes, from an idle device to an idle device."""
        self.synchronise()
        start = time.perf_counter()
        result = call()
        self.synchronise()
        taken = time.perf_counter() - start
        del result  # which is not what is timed
        return taken

    def keep_memory(self) -> bool:
        """Have the C library keep what is freed, as torch's allocator does on CUDA; whether it can.

        A result of more than 32 MiB otherwise lies in new pages with each call. To get them takes
        more than half of the time, or hardly any where they are huge ones, as the system pleases.
        """
        if self.name != "cpu" or sys.platform != "linux":
            return False
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:  # not glibc
            return False
        return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))

    def describe(self) -> str:
        """The machine, for a record."""
        if self.name == "cuda":
            capability = ".".join(map(str, torch.cuda.get_device_capability()))
            return f"{torch.cuda.get_device_name()} (compute capability {capability})"
        threads = torch.get_num_threads()
        return f"{os.uname().machine}, {os.cpu_count()} CPUs, {threads} thread(s)"


@dataclass(frozen=True)
class Times:
    """Seconds of each contender, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def milliseconds(self, name: str) -> float:
        """The median; NaN for a contender that did not run."""
        return 1e3 * median(self.seconds[name]) if name in self.seconds else math.nan

    def least(self, name: str) -> float:
        """The least, in milliseconds: what a busy machine adds is never below zero."""
        return 1e3 * min(self.seconds[name]) if name in self.seconds else math.nan

    def ratio(self, of: str, to: str) -> float:
        """The median of the ratios within a round; NaN unless both ran."""
        if of not in self.seconds or to not in self.seconds:
            return math.nan
        return median(a / b for a, b in zip(self.seconds[of], self.seconds[to], strict=True))

    def noise(self, reference: str) -> float:
        """A/A."""
        return self.ratio(reference + AGAIN, reference)


def interleaved(
    calls: Mapping[str, Call],
    device: Device,
    *,
    reference: str,
    budget: float,
    least: int = 3,
    most: int = 25,
) -> Times:
    """Time contenders in turn.

    Args:
        calls: the contenders, each warm.
        device: what to wait for.
        reference: the one that runs twice in a round.
        budget: the seconds that are to be spent, if the least number of rounds allows.
        least: rounds.
        most: rounds.
    """
    every = {**calls, reference + AGAIN: calls[reference]}
    order = list(every)
    seconds: dict[str, list[float]] = {name: [] for name in every}
    stop = time.perf_counter() + budget
    for done in range(most):
        if done >= least and time.perf_counter() > stop:
            break
        order.append(order.pop(0))
        for name in order:
            seconds[name].append(device.seconds(every[name]))
    return Times(seconds)


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """With so many threads of torch's; None for those that there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def busy(is_wanted: bool = True) -> Iterator[None]:
    """While another process keeps a core busy."""
    if not is_wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def exponent(tokens: Sequence[int], times: Sequence[float], last: int = 5) -> float:
    """The slope of log time over log tokens, by least squares, at the largest sizes that ran."""
    pairs = [(math.log(n), math.log(t)) for n, t in zip(tokens, times, strict=True) if t > 0]
    pairs = sorted(pairs)[-last:]
    if len(pairs) < 2:
        return math.nan
    mean_n, mean_t = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    squares = math.fsum((n - mean_n) * (n - mean_n) for n, _ in pairs)
    return math.fsum((n - mean_n) * (t - mean_t) for n, t in pairs) / squares


# Memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """MiB of one call.

    Args:
        growth: how much more than before the call at its peak.
        peak: of the whole process; on CUDA of all that torch has allocated.
    """

    growth: float
    peak: float


def memory_in_a_new_process(module: str, *arguments: str) -> Memory:
    """Run a module that prints what `memory_of` finds; NaN where Linux is not, or it failed."""
    if sys.platform != "linux":
        return Memory(math.nan, math.nan)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return Memory(math.nan, math.nan)
    return Memory(**json.loads(done.stdout))


def memory_of(call: Call, device: Device) -> Memory:
    """The memory of one call in this process."""
    mebibyte = 2**20
    if device.name == "cuda":
        device.synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        device.synchronise()
        peak = torch.cuda.max_memory_allocated()
        return Memory((peak - before) / mebibyte, peak / mebibyte)
    clear = Path("/proc/self/clear_refs")
    clear.write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    call()
    peak = _status("VmHWM")
    return Memory((peak - before) / mebibyte, peak / mebibyte)


def _status(entry: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) * 1024


# Tables -------------------------------------------------------------------------------------------


def digits(number: float) -> str:
    """Three digits, none of them lost to an exponent; a dash for what was not measured."""
    if math.isnan(number):
        return "-"
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


Row = Mapping[str, str]


def table(rows: Sequence[Row]) -> str:
    """Markdown; every row has the same columns, numbers to the right."""
    head = list(rows[0])
    if any(list(row) != head for row in rows):
        raise ValueError("rows with different columns")
    lines = [head, ["---", *("---:" for _ in head[1:])], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
