"""The benchmarks' protocol: what is paired, fitted, waited for and drawn. No time is asserted."""

from __future__ import annotations

import contextlib
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import contenders, networks, protocol, record, suite
from benchmarks.contenders import Case
from benchmarks.protocol import Device, Memory, Times

CPU = Device()


class Clock:
    """A clock that calls set forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spends(self, *lengths: float) -> Callable[[], None]:
        """A call that takes these times in turn, the last one for ever."""
        left = list(lengths)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


# Time ---------------------------------------------------------------------------------------------


def test_ratio_is_the_median_of_the_ratios_within_a_round() -> None:
    times = Times({"a": [1.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]})
    assert times.ratio("a", "b") == 2.0  # that of the medians is 3
    assert times.milliseconds("a") == 3000.0
    assert times.least("a") == 1000.0


def test_contender_that_did_not_run_has_no_number() -> None:
    times = Times({"a": [1.0]})
    assert math.isnan(times.ratio("a", "b"))
    assert math.isnan(times.milliseconds("b"))
    assert math.isnan(times.least("b"))
    assert protocol.digits(times.ratio("b", "a")) == "-"


def test_reference_stands_twice_in_every_round_and_the_order_turns(clock: Clock) -> None:
    ran = []

    def call(name: str) -> Callable[[], None]:
        return lambda: ran.append(name)

    calls = {name: call(name) for name in ("conv", "layer")}
    times = protocol.interleaved(calls, CPU, reference="conv", budget=1, most=3)
    rounds = [ran[i : i + 3] for i in (0, 3, 6)]
    assert [sorted(names) for names in rounds] == [["conv", "conv", "layer"]] * 3
    assert [names[0] for names in rounds] == ["layer", "conv", "conv"]
    assert set(times.seconds) == {"conv", "conv again", "layer"}
    assert all(len(seconds) == 3 for seconds in times.seconds.values())


def test_rounds_end_with_the_budget_but_not_before_the_least(clock: Clock) -> None:
    def rounds(budget: float) -> int:
        calls = {"conv": clock.spends(1.0)}
        times = protocol.interleaved(calls, CPU, reference="conv", budget=budget, least=3, most=9)
        return len(times.seconds["conv"])

    assert [rounds(0.0), rounds(9.0), rounds(1e9)] == [3, 5, 9]


def test_slow_machine_falls_on_all_contenders_alike(clock: Clock) -> None:
    # Twice as slow from the third round on.
    calls = {
        "conv": clock.spends(1, 1, 1, 1, 2),
        "layer": clock.spends(3, 3, 6),
    }
    times = protocol.interleaved(calls, CPU, reference="conv", budget=1e9, most=9)
    assert times.ratio("layer", "conv") == 3.0
    assert times.noise("conv") == 1.0


def test_memory_is_kept_where_glibc_is() -> None:
    # In a process of its own, which this changes.
    program = "from benchmarks.protocol import Device; print(Device().keep_memory())"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=protocol.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")


def rounding_of_a_slope(tokens: list[int], times: list[float]) -> float:
    """How far the slope of two or more exact points on a line may be off in float64.

    A logarithm of size L or less is off by 2 u L, that of a time whose own power and product were
    rounded by 4 u <= 4 u L more; a mean of at most five of them inherits that, and its sum and
    quotient round six times: a difference from it is off by less than 24 u L. So numerator and
    denominator are off by 24 u L times the sums of what these differences are multiplied by, and
    each product, sum and the quotient by u more.
    """
    logs = [(math.log(n), math.log(t)) for n, t in zip(tokens, times, strict=True)]
    most = max(1.0, *(abs(entry) for pair in logs for entry in pair))
    mean_n, mean_t = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    across = sum(abs(n - mean_n) for n, _ in logs)
    along = sum(abs(t - mean_t) for _, t in logs)
    squares = sum((n - mean_n) ** 2 for n, _ in logs)
    slope = along / across  # of points on a rising line
    off = 24 * most * (across + along + 2 * slope * across) / squares
    within: float = (off + 5 * slope) * 2.0**-53
    return within


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0])
def test_exponent_is_that_of_the_largest_sizes(power: float) -> None:
    tokens = [2**n for n in (4, 6, 8, 10, 12, 14, 16)]
    times = [7.0, 7.0, *(1e-3 * n**power for n in tokens[2:])]
    within = rounding_of_a_slope(tokens[2:], times[2:])
    assert abs(protocol.exponent(tokens, times) - power) <= within
    stopped = [*times[:-1], math.nan]
    within = rounding_of_a_slope(tokens[2:-1], times[2:-1])
    assert abs(protocol.exponent(tokens, stopped, last=4) - power) <= within
    assert abs(protocol.exponent(tokens, times, last=6) - power) > within  # a small size counts
    assert math.isnan(protocol.exponent(tokens[:1], times[:1]))


# Devices ------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a card that is not there."""
    asked: list[str] = []
    sizes = {"memory_allocated": 2**20, "max_memory_allocated": 5 * 2**20}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "reset_peak_memory_stats", *sizes):

        def called(name: str = name) -> int | None:
            asked.append(name)
            return sizes.get(name)

        monkeypatch.setattr(torch.cuda, name, called)
    return asked


def test_card_is_idle_before_and_after_what_is_timed(card: list[str]) -> None:
    Device("cuda").seconds(lambda: card.append("call"))
    assert card == ["synchronize", "call", "synchronize"]


def test_memory_of_a_card_is_what_torch_has_allocated(card: list[str]) -> None:
    assert protocol.memory_of(lambda: card.append("call"), Device("cuda")) == Memory(4.0, 5.0)
    before, after = card.index("reset_peak_memory_stats"), card.index("max_memory_allocated")
    assert before < card.index("memory_allocated") < card.index("call") < after
    assert card[after - 1] == "synchronize"


def test_modes_of_a_card_set_and_restore_what_torch_may_do(card: list[str]) -> None:
    matmul, device = torch.backends.cuda.matmul, Device("cuda")

    def state() -> tuple[bool, bool, bool]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return matmul.allow_tf32, torch.backends.cudnn.allow_tf32, deterministic

    before, seen = state(), []
    for mode in device.modes:
        with contextlib.suppress(ArithmeticError), device.mode(mode):
            seen.append(state())
            raise ArithmeticError
        assert state() == before
    assert seen == [(False, False, False), (True, True, False), (False, False, True)]


def test_rows_of_a_card_say_their_mode_and_those_of_a_cpu_have_none(card: list[str]) -> None:
    assert [cell for _, cell in suite.in_modes(CPU)] == [{}]
    of_card = [cell for _, cell in suite.in_modes(Device("cuda"))]
    assert of_card == [{"mode": mode} for mode in Device("cuda").modes]


def test_card_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "torch sees no card" in capsys.readouterr().err


@pytest.mark.parametrize("part", [["--small"], ["--only", "line"]], ids=" ".join)
def test_part_of_a_run_is_no_record(part: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--write", *part])
    assert "--write is for a whole run" in capsys.readouterr().err


# Contenders ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_contenders_that_should_compute_the_convolution_do() -> None:
    suite.check(CPU)


@pytest.mark.usefixtures("eager")
def test_contender_that_computes_anything_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(conv: Any) -> Any:
        module = contenders.Stock(conv, 104.0)
        module.v.data[0, 1] += 300.0
        return module

    monkeypatch.setattr(contenders, "MAKERS", {**contenders.MAKERS, contenders.STOCK: wrong})
    with pytest.raises(AssertionError, match=r"SDPA: the layer is not the convolution"):
        suite.check(CPU)


def test_contender_stops_where_its_weights_do_not_fit() -> None:
    fits = {
        name: [contenders.fits(name, Case((side, side))) for side in (64, 128, 1024)]
        for name in (*contenders.LINEAR, *contenders.QUADRATIC)
    }
    for name in contenders.LINEAR:
        assert fits[name] == [True, True, True]
    for name in contenders.QUADRATIC:
        assert fits[name] == [True, False, False]
    assert not contenders.fits(contenders.DENSE, Case((8,)))


@torch.no_grad()
def test_lowered_part_of_a_gated_layer_is_that_part_within_its_bound() -> None:
    gpsa = contenders.gated(36, 9)
    if gpsa is None:
        pytest.skip("timm is not installed; the extra `ecosystem` brings it")
    x = torch.randn(1, 36, 6, 6, generator=torch.Generator().manual_seed(0))
    lowered = contenders.lowered_part(gpsa)
    gpsa.double()
    part, tokens = contenders.PositionalPart(gpsa), x.double().flatten(2).mT
    truth = contenders.OnTokens(part, 36)(x.double())
    assert ((lowered(x).double() - truth).abs() <= lowered.error_bound(x)).all()
    # The published layer, its gates open, has these weights, once more normalised; and does the
    # same with them.
    gpsa.gating_param.fill_(40.0)
    weights = part.weights(tokens)
    assert torch.equal(gpsa.get_attention(tokens), weights / weights.sum(dim=-1, keepdim=True))
    gpsa.get_attention = lambda _: weights
    assert torch.equal(gpsa(tokens), part(tokens))


def test_network_has_the_size_of_resnet_50() -> None:
    with torch.device("meta"):
        network = networks.resnet50()
    assert sum(p.numel() for p in network.parameters()) == 25_557_032


# The record ---------------------------------------------------------------------------------------


def test_table_of_targets_says_what_is_met() -> None:
    targets = [suite.Target("a", 1.0, 1.05), suite.Target("b", 1.1, 1.05)]
    targets.append(suite.Target("c", math.nan, 2.0))
    assert [target.row["met"] for target in targets] == ["yes", "no", "-"]


def test_rows_of_a_table_have_the_same_columns() -> None:
    assert protocol.table([{"a": "1", "b": "2"}]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="different columns"):
        protocol.table([{"a": "1"}, {"b": "2"}])


def test_figure_draws_what_the_newest_record_has(tmp_path: Path) -> None:
    text = record.newest_record().read_text(encoding="utf-8")
    lines = record.growth_in(text)
    assert set(contenders.LINEAR) <= set(lines)
    tokens = max(n for points in lines.values() for n, _ in points)
    for name in contenders.LINEAR:
        assert max(n for n, _ in lines[name]) == tokens
    record.save_figure(text, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_figure_reads_numbers_with_commas_dashes_and_modes() -> None:
    text = """# Benchmarks

## Growth

| tokens | mode | 256 | 1,024 | exponent |
| --- | ---: | ---: | ---: | ---: |
| layer | TF32 off | 0.5 | 1,200 | 1.5 |
| dense | TF32 off | 3 | - | - |
| layer | TF32 on | 0.1 | 0.2 | 1 |

## Memory

| case | 9 |
"""
    assert record.growth_in(text) == {"layer": [(256, 0.5), (1024, 1200.0)], "dense": [(256, 3.0)]}
    with pytest.raises(ValueError, match="no table of growth"):
        record.growth_in("# Benchmarks\n")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["beside", "line", "certificates"])
def test_section_has_a_table_and_its_targets(name: str) -> None:
    (section,) = suite.run(CPU, suite.SMALL, [name])
    assert section.targets
    assert protocol.table(section.rows).count("\n") == len(section.rows) + 1
