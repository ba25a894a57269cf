"""The tables: what is compared with what, at which sizes, and what is aimed at."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import contenders as c
from benchmarks import networks, protocol
from benchmarks.contenders import Case
from benchmarks.memory import memory
from benchmarks.protocol import Call, Device, Row, Times, digits, exponent, interleaved
from constructions import assert_equivalent, attention_from_conv, certify, convert
from constructions.layer.attention import MultiHeadSelfAttention

FORWARD, BOTH = "forward", "forward, backward"

CERTIFIED = 8.0
"""Forwards that a certificate may take."""


@dataclass(frozen=True)
class Target:
    """What is aimed at, and what came: nothing fails on it.

    Args:
        what: in words.
        measured: the number.
        most: what it should be at most.
    """

    what: str
    measured: float
    most: float

    @property
    def row(self) -> Row:
        """Of the table of targets."""
        met = "-" if math.isnan(self.measured) else "yes" if self.measured <= self.most else "no"
        return {
            "what": self.what,
            "at most": digits(self.most),
            "measured": digits(self.measured),
            "met": met,
        }


@dataclass
class Section:
    """A table, and the targets that are read off it.

    Args:
        title: of the table.
        text: what stands above it.
        rows: of the table.
        targets: what is aimed at.
    """

    title: str
    text: str
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """Sizes of a run.

    Args:
        budget: seconds for the rounds of a row.
        beside: sides of the image beside the convolution, where the targets are.
        against: sides of the images for attention that holds its weights, forward and backward.
        stored: the side of the image for its memory.
        growth: sides of the images that time grows over.
        line: tokens of the sequences that it grows over.
        large: the side of the image whose memory is limited.
        gated: sides of the images for ConViT's layer.
        certified: sides of the images for certificates.
        every: whether rows are a full product of sizes, channels, kernels and formats.
    """

    budget: float = 3.0
    beside: int = 224
    against: Sequence[int] = (16, 32)
    stored: int = 64
    growth: Sequence[int] = (16, 32, 64, 128, 224, 512, 724, 1024)
    line: Sequence[int] = tuple(2**n for n in (10, 12, 14, 16, 18, 19, 20))
    large: int = 1024
    gated: Sequence[int] = (14, 28, 56, 224)
    certified: Sequence[int] = (32, 64, 128, 224)
    every: bool = False


SMALL = Grid(0.05, 24, (8, 12), 12, (8, 12, 16), (64, 128), 32, (6,), (12,))
"""Sizes that show in seconds whether everything runs."""

FULL = Grid(budget=6.0, every=True)


# One row ------------------------------------------------------------------------------------------


def call_of(module: nn.Module, x: Tensor, *, backward: bool) -> Call:
    """A forward pass, or one and the gradients of the image and of all parameters."""
    if not backward:
        return partial(forward, module, x)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = None
    x = x.clone().requires_grad_()
    with torch.no_grad():
        direction = torch.ones_like(module(x))
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]

    def both() -> object:
        return torch.autograd.grad(module(x), leaves, direction, allow_unused=True)

    return both


@torch.no_grad()
def forward(module: nn.Module, x: Tensor) -> object:
    """Run a module."""
    return module(x)


def times_of(
    names: tuple[str, ...], case: Case, device: Device, budget: float, *, backward: bool = False
) -> Times:
    """Time contenders at one case."""
    x = case.image()
    calls = {}
    for name, module in c.modules(names, case).items():
        if backward and name in c.FROZEN:
            continue
        calls[name] = call_of(module, x, backward=backward)
        calls[name]()  # warm
    return interleaved(calls, device, reference=c.PADDED, budget=budget)


def check(device: Device) -> None:
    """Raise an AssertionError unless all that should compute the convolution does."""
    case = Case((12, 10), channels=9, device=device.name)
    for name, module in c.modules(c.EXACT, case).items():
        try:
            assert_equivalent(module, case.convolution(), case.image())
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def described(case: Case) -> str:
    """A case in a cell."""
    size = f"{case.size[0]}²" if len(case.size) == 2 else f"{case.tokens:,}"
    kind = " depthwise" if case.depthwise else ""
    format_ = "" if case.dtype == "float32" else f", {case.dtype}"
    taps = f"{case.kernel} x {case.kernel}" if len(case.size) == 2 else f"{case.kernel} taps"
    images = f", {case.batch} images" if case.batch > 1 else ""
    return f"{size}, {case.channels} channels, {taps}{kind}{format_}{images}"


def in_modes(device: Device) -> Iterator[tuple[str, dict[str, str]]]:
    """The modes of the device, each with the cell that names it, if there are several."""
    for mode in device.modes:
        with device.mode(mode):
            yield mode, {"mode": mode} if mode else {}


# The tables ---------------------------------------------------------------------------------------


def beside_the_convolution(device: Device, grid: Grid) -> Section:
    """Where the targets are."""
    section = Section(
        "Beside the convolution",
        "Ratios to `F.pad`, then `F.conv2d`, of which the first column has the time. A/A is the "
        "ratio of that to itself.",
    )
    base = partial(Case, (grid.beside,) * 2, device=device.name)
    cases = [
        base(),
        base(kernel=5),
        base(kernel=7),
        base(channels=256),
        base(dtype="bfloat16"),
        base(channels=16),
        base(kernel=1),
        base(depthwise=True),
    ]
    if grid.every:
        cases = [
            base(channels=n, kernel=k, dtype=dtype)
            for dtype in ("float32", "bfloat16")
            for n in (16, 64, 256)
            for k in (1, 3, 5, 7)
        ] + [base(depthwise=True)]
    names = (c.PADDED, c.CONVOLUTION, c.SATURATED, c.FINITE, c.BANDED)
    for case in cases:
        aimed = case == base()
        for backward in (False, True):
            for mode, cell in in_modes(device):
                budget = grid.budget * (5 if aimed else 1)
                times = times_of(names, case, device, budget, backward=backward)
                passes = BOTH if backward else FORWARD
                section.rows.append(
                    {
                        "case": described(case),
                        "pass": passes,
                        **cell,
                        "ms": digits(times.milliseconds(c.PADDED)),
                        **{n: digits(times.ratio(n, c.PADDED)) for n in names[1:]},
                        "A/A": digits(times.noise(c.PADDED)),
                    }
                )
                if aimed and mode == device.modes[0]:
                    for name, most in ((c.SATURATED, 1.05), (c.FINITE, 2.0)):
                        what = f"{name}, {passes}, over pad, conv2d at {described(case)}"
                        section.targets.append(Target(what, times.ratio(name, c.PADDED), most))
    return section


def small_and_busy(device: Device, grid: Grid) -> Section:
    """Small images, few channels, and a core that another process takes."""
    section = Section(
        "Small images, and a busy core",
        "Ratios to `F.pad`, then `F.conv2d`, no gradients: a saturated layer of 64 channels on "
        "small images; a finite one of few channels, on one thread, four images; and a finite one "
        "of 64 channels while another process keeps a core busy.",
    )
    one = 1
    plans: list[tuple[str, Case, int | None, bool, float]] = [
        (c.SATURATED, Case((16, 16), device=device.name), None, False, 1.3),
        (c.SATURATED, Case((32, 32), device=device.name), None, False, 1.15),
        (c.FINITE, Case((56, 56), 16, device=device.name, batch=4), one, False, 2.5),
        (c.FINITE, Case((56, 56), depthwise=True, device=device.name, batch=4), one, False, 2.5),
        (c.FINITE, Case((grid.beside,) * 2, device=device.name), None, True, 3.0),
    ]
    for name, case, threads, is_busy, most in plans:
        where = "beside a busy process" if is_busy else "one thread" if threads else "alone"
        with protocol.threads(threads), protocol.busy(is_busy):
            times = times_of((c.PADDED, name), case, device, grid.budget)
        ratio = times.ratio(name, c.PADDED)
        section.rows.append(
            {
                "layer": name,
                "case": described(case),
                "where": where,
                "pad, conv2d, ms": digits(times.milliseconds(c.PADDED)),
                "ratio": digits(ratio),
                "A/A": digits(times.noise(c.PADDED)),
            }
        )
        what = f"{name}, {where}, over pad, conv2d at {described(case)}"
        section.targets.append(Target(what, ratio, most))
    return section


def against_attention(device: Device, grid: Grid) -> Section:
    """What holds all weights, while they fit."""
    section = Section(
        "Against attention that holds its weights",
        "Times over that of our saturated layer; its own time first. Larger images: see Growth. "
        f"A dash: one copy of the weights is larger than {c.WEIGHTS / 2**30:g} GiB (fused holds "
        "none, but takes as long), or the contender does not exist here. GPSA has a head for each "
        "tap too, and leaves out the channels that its heads do not divide.",
    )
    base = partial(Case, device=device.name)
    middle = (grid.against[-1],) * 2
    cases = [
        *(base((n, n)) for n in grid.against),
        base(middle, channels=16),
        base(middle, channels=256),
        base(middle, kernel=5),
        base(middle, kernel=7),
        base(middle, dtype="bfloat16"),
    ]
    if grid.every:
        cases = [
            base((n, n), channels=channels, kernel=k, dtype=dtype)
            for dtype in ("float32", "bfloat16")
            for n in grid.against
            for channels in (16, 64, 256)
            for k in (3, 5, 7)
        ]
    for case in cases:
        for backward in (False, True):
            for _, cell in in_modes(device):
                names = (c.PADDED, c.SATURATED, *(n for n in c.QUADRATIC if n != c.BY_HEAD))
                times = times_of(names, case, device, grid.budget / 2, backward=backward)
                section.rows.append(
                    {
                        "case": described(case),
                        "pass": BOTH if backward else FORWARD,
                        **cell,
                        f"{c.SATURATED}, ms": digits(times.milliseconds(c.SATURATED)),
                        **{n: digits(times.ratio(n, c.SATURATED)) for n in names if n != names[1]},
                        "A/A": digits(times.noise(c.PADDED)),
                    }
                )
    return section


def grown(
    section: Section, names: tuple[str, ...], cases: Sequence[Case], device: Device, grid: Grid
) -> dict[str, float]:
    """A row of milliseconds for each contender, and its exponent."""
    found: dict[str, float] = {}
    for _, cell in in_modes(device):
        times = [times_of(names, case, device, grid.budget) for case in cases]
        for name in names:
            column = [t.least(name) for t in times]
            slope = exponent([case.tokens for case in cases], column)
            cells = {f"{k.tokens:,}": digits(ms) for k, ms in zip(cases, column, strict=True)}
            section.rows.append({"tokens": name, **cell, **cells, "exponent": digits(slope)})
            found.setdefault(name, slope)
    return found


def growth(device: Device, grid: Grid) -> Section:
    """Time over tokens, of images."""
    section = Section(
        "Growth",
        "Milliseconds of a forward pass, the least of all rounds, since sizes are not measured in "
        "turn: 64 channels, 3 x 3, float32. The exponent is that of time in tokens, fitted to the "
        "five largest sizes of each contender. That of the convolution says what the machine adds.",
    )
    cases = [Case((n, n), device=device.name) for n in grid.growth]
    slopes = grown(section, (*c.LINEAR, c.FULL, *c.QUADRATIC), cases, device, grid)
    for name, most in ((c.SATURATED, 1.05), (c.BANDED, 1.05), (c.FINITE, 1.05), (c.FULL, 1.5)):
        section.targets.append(Target(f"exponent of time, {name}, images", slopes[name], most))
    return section


def growth_on_a_line(device: Device, grid: Grid) -> Section:
    """Time over tokens, of sequences."""
    section = Section(
        "Growth on a line",
        "The same for sequences: 64 channels, 3 taps. The factor of a soft padding is then as "
        "large as attention's weights; `lower` keeps the window that counts.",
    )
    cases = [Case((n,), device=device.name) for n in grid.line]
    slopes = grown(section, c.LINEAR, cases, device, grid)
    for name in (c.SATURATED, c.BANDED):
        section.targets.append(Target(f"exponent of time, {name}, a line", slopes[name], 1.05))
    return section


def memories(device: Device, grid: Grid) -> Section:
    """Peak memory of a forward pass."""
    section = Section(
        "Memory",
        "MiB of a forward pass, float32, 3 x 3: what it adds at its peak, and what the process "
        "then has, torch and the image included.",
    )
    base = partial(Case, device=device.name)
    side = grid.stored
    large, line = base((grid.large,) * 2), base((grid.line[-1],))
    plans = [(base((side, side)), (*c.LINEAR, *c.QUADRATIC)), (large, c.LINEAR), (line, c.LINEAR)]
    for case, names in plans:
        for name in names:
            exists = c.fits(name, case) and bool(c.modules((name,), case.smaller()))
            if not exists:
                continue
            found = memory(name, case)
            section.rows.append(
                {
                    "case": described(case),
                    "contender": name,
                    "growth, MiB": digits(found.growth),
                    "peak, MiB": digits(found.peak),
                }
            )
            if case != plans[0][0] and name in (c.SATURATED, c.FINITE, c.BANDED):
                what = f"peak MiB of the process, {name} at {described(case)}"
                section.targets.append(Target(what, found.peak, 2048.0))
    return section


@torch.no_grad()
def gates(device: Device, grid: Grid) -> Section:
    """ConViT's layer, its positional part, and that lowered."""
    section = Section(
        "A gated layer, lowered",
        "ConViT-S: 432 channels, 9 heads, float32, forward. `GPSA` is the layer as published; its "
        "positional part alone, as it computes it; and that part by `lower`, as initialised (all "
        "heads of one precision) and with a precision and a centre of its own for each head.",
    )
    if c.gated(9, 9) is None:
        section.text += " timm is not installed here: nothing was measured."
        return section
    for side in grid.gated:
        x = torch.randn(1, 432, side, side, generator=torch.Generator().manual_seed(1))
        x = x.to(device.name)
        first, trained = c.gated(432, 9), c.gated(432, 9)
        generator = torch.Generator().manual_seed(2)
        moved = trained.pos_proj.weight
        moved.mul_(1 + 0.3 * torch.randn(moved.shape, generator=generator).clamp(-2, 2))
        conv = nn.Conv2d(432, 432, 3, padding=1).to(device.name)
        layers: dict[str, nn.Module] = {c.PADDED: c.PadThenConvolve(conv)}
        if 4 * 9 * side**4 <= c.WEIGHTS:
            layers["GPSA"] = c.OnTokens(first.to(device.name), 432)
            layers["positional part"] = c.OnTokens(c.PositionalPart(first), 432)
        for name, layer in (("lowered", first), ("lowered, trained", trained)):
            layers[name] = c.lowered_part(layer.cpu()).to(device.name)
        first.to(device.name)
        if "GPSA" in layers and side <= 32:
            wide = copy.deepcopy(first).cpu().double()
            wide.rel_indices = wide.get_rel_indices(side**2)
            truth = c.OnTokens(c.PositionalPart(wide), 432)(x.cpu().double())
            error = (layers["lowered"](x).cpu().double() - truth).abs()
            assert bool((error <= c.lowered_part(wide.float()).error_bound(x.cpu())).all())
        for _, cell in in_modes(device):
            calls = {name: partial(forward, layer, x) for name, layer in layers.items()}
            for call in calls.values():
                call()
            times = interleaved(calls, device, reference=c.PADDED, budget=grid.budget)
            section.rows.append(
                {
                    "image": f"{side}²",
                    **cell,
                    "pad, conv2d, ms": digits(times.milliseconds(c.PADDED)),
                    **{
                        f"{name}, ms": digits(times.milliseconds(name))
                        for name in ("GPSA", "positional part", "lowered", "lowered, trained")
                    },
                    "part / lowered": digits(times.ratio("positional part", "lowered")),
                    "GPSA / lowered": digits(times.ratio("GPSA", "lowered")),
                    "A/A": digits(times.noise(c.PADDED)),
                }
            )
    return section


def converted(device: Device, grid: Grid) -> Section:
    """Whole networks."""
    section = Section(
        "Networks",
        "`convert(network)`, saturated, and the original: a forward pass in evaluation mode, and a "
        "step of SGD with momentum on two images; bytes are those of parameters and buffers.",
    )
    side = max(grid.beside, 32)  # what is left of it after five halvings
    plans: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]] = [
        ("a network of ResNet-50's size", networks.resnet50, (3, side, side), f"{side}²"),
        ("a ConvNeXt block", networks.convnext_block, (96, side // 4, side // 4), f"{side // 4}²"),
    ]
    for name, make, shape, size in plans:
        original = make().to(device.name)
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            attention = convert(original)
            spent.append(time.perf_counter() - start)
        seconds = sorted(spent)[1]
        ratio = networks.stored_bytes(attention) / networks.stored_bytes(original)
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)).to(device.name)
        layers = {"original": original, "converted": attention}
        for mode, cell in in_modes(device):
            with torch.no_grad():
                calls = {k: partial(forward, layer, x) for k, layer in layers.items()}
                for call in calls.values():
                    call()
                times = interleaved(calls, device, reference="original", budget=2 * grid.budget)
            trainees = {k: copy.deepcopy(layer).train() for k, layer in layers.items()}
            steps = {k: networks.training_step(each, x) for k, each in trainees.items()}
            for step in steps.values():
                step()
            trained = interleaved(steps, device, reference="original", budget=2 * grid.budget)
            section.rows.append(
                {
                    "network": f"{name}, {size}",
                    **cell,
                    "conversion, s": digits(seconds),
                    "original, ms": digits(times.milliseconds("original")),
                    "converted / original": digits(times.ratio("converted", "original")),
                    "A/A": digits(times.noise("original")),
                    "step, ms": digits(trained.milliseconds("original")),
                    "step, converted / original": digits(trained.ratio("converted", "original")),
                    "step, A/A": digits(trained.noise("original")),
                    "bytes, ratio": digits(ratio),
                }
            )
            if mode != device.modes[0]:
                continue
            forward_ratio = times.ratio("converted", "original")
            step_ratio = trained.ratio("converted", "original")
            if name.startswith("a network"):
                section.targets.append(Target(f"seconds of conversion, {name}", seconds, 2.0))
            section.targets += [
                Target(f"bytes over the original's, {name}", ratio, 1.05),
                Target(f"forward over the original's, {name}", forward_ratio, 1.1),
                Target(f"training step over the original's, {name}", step_ratio, 1.15),
            ]
    return section


def certificates(device: Device, grid: Grid) -> Section:
    """What it costs to certify an output."""
    section = Section(
        "Certificates",
        "`certify(layer, conv, x)` over a forward pass of the layer, 64 channels, 3 x 3, float32. "
        "A certificate runs the layer and torch's convolution, and two or more convolutions in "
        "float64, each of which takes several times as long as one in float32.",
    )
    plans = [(name, n) for name in (c.SATURATED, c.FINITE) for n in grid.certified]
    plans += [(c.DENSE, grid.against[1])]
    worst: dict[str, float] = {}
    for name, side in plans:
        case = Case((side, side), device=device.name)
        conv, x = case.convolution(), case.image()
        layer = c.MAKERS[name](conv)
        assert isinstance(layer, MultiHeadSelfAttention)
        calls: Mapping[str, Call] = {
            "layer": partial(forward, layer, x),
            "certify": partial(certify, layer, conv, x),
        }
        for call in calls.values():
            call()
        times = interleaved(calls, device, reference="layer", budget=grid.budget / 2)
        ratio = times.ratio("certify", "layer")
        worst[name] = max(ratio, worst.get(name, 0.0))
        section.rows.append(
            {
                "layer": name,
                "image": f"{side}²",
                "forward, ms": digits(times.milliseconds("layer")),
                "certify, ms": digits(times.milliseconds("certify")),
                "certify / forward": digits(ratio),
                "A/A": digits(times.noise("layer")),
            }
        )
    for name, ratio in worst.items():
        what = f"certify over a forward pass, {name}, at the worst of these sizes"
        section.targets.append(Target(what, ratio, CERTIFIED))
    return section


def few_heads(device: Device, grid: Grid) -> Section:
    """Kernels of low rank, as few heads as they need."""
    section = Section(
        "Few heads",
        "A kernel whose taps have rank r, positive in one direction, as r heads "
        "(`heads='minimal'`, factored) beside `F.pad`, then `F.conv2d`: 64 channels, float32, "
        "forward. Products are those of (26) of T10 over the convolution's: below 1 attention "
        "multiplies less.",
    )
    side = grid.certified[-1]
    for kernel in (3, 5, 7):
        for rank in (1, 2, 4, 8):
            case = Case((side, side), kernel=kernel, device=device.name)
            conv, x = c.of_rank(case.convolution(), rank), case.image()
            layer = attention_from_conv(conv, heads="minimal")
            assert (layer.num_heads, layer.evaluation) == (rank, "factored")
            if side <= 32:
                assert certify(layer, conv, x).holds
            layers = {c.PADDED: c.PadThenConvolve(conv), "minimal": layer}
            taps, width = kernel**2, case.channels
            for _, cell in in_modes(device):
                calls = {name: partial(forward, module, x) for name, module in layers.items()}
                for call in calls.values():
                    call()
                times = interleaved(calls, device, reference=c.PADDED, budget=grid.budget / 2)
                section.rows.append(
                    {
                        "case": described(case),
                        "rank": str(rank),
                        **cell,
                        "pad, conv2d, ms": digits(times.milliseconds(c.PADDED)),
                        "minimal / pad, conv2d": digits(times.ratio("minimal", c.PADDED)),
                        "products": digits(rank * (taps + width) / (taps * width)),
                        "A/A": digits(times.noise(c.PADDED)),
                    }
                )
    return section


SECTIONS: Mapping[str, Callable[[Device, Grid], Section]] = {
    "beside": beside_the_convolution,
    "small": small_and_busy,
    "against": against_attention,
    "growth": growth,
    "line": growth_on_a_line,
    "memory": memories,
    "gates": gates,
    "networks": converted,
    "certificates": certificates,
    "heads": few_heads,
}


def run(device: Device, grid: Grid, names: Sequence[str] = tuple(SECTIONS)) -> list[Section]:
    """All sections that are named, one after the other."""
    check(device)
    done = []
    for name in names:
        start = time.perf_counter()
        done.append(SECTIONS[name](device, grid))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return done
