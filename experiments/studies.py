"""The three studies: the paper's comparison, little data, and whether centres find the offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.measures import Lowering, Pruning, heads_for, lowering, taps_of
from experiments.mixers import ARMS, HEADS, Convolution, Quadratic
from experiments.network import Digits, Network, accuracy, train

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is run.

    Args:
        seeds: of splits and starts.
        goal: test accuracy at which the convolution stops, and all other arms of the seed with it.
        epochs: at most.
        sizes: training images of the study of little data.
        steps: of optimisation there, for every size.
        starts: of the study of offsets.
        fits: steps of optimisation there.
    """

    seeds: int = 5
    goal: float = 0.97
    epochs: int = 20
    sizes: tuple[int, ...] = (50, 150, 450, 1300)
    steps: int = 150
    starts: int = 8
    fits: int = 600


SMOKE = Effort(seeds=2, goal=0.2, epochs=1, sizes=(50, 100), steps=2, starts=2, fits=3)


@dataclass
class Trained:
    """What is kept of one arm of one seed.

    Args:
        accuracy: on the test images.
        lowerings: of each layer, of the quadratic arm.
        needed: heads for a floor of 10 %, of each layer, where the weights are positional.
        prunings: T10's count and floors, likewise.
        centres: of each epoch, the start first, (epochs + 1, layers, heads, 2); quadratic arm.
    """

    accuracy: float
    lowerings: list[Lowering] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)
    prunings: list[Pruning] = field(default_factory=list)
    centres: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """The paper's comparison.

    Args:
        goal: of the convolution's accuracy.
        epochs: that it took, by seed.
        arms: by name, what came of each seed.
    """

    goal: float
    epochs: list[int]
    arms: dict[str, list[Trained]]


def compare(effort: Effort, say: Say) -> Comparison:
    """Train every arm as long as the convolution takes to its goal, seed by seed."""
    taken: list[int] = []
    arms: dict[str, list[Trained]] = {name: [] for name in ARMS}
    for seed in range(effort.seeds):
        digits, epochs = Digits.split(seed), effort.epochs
        for name, maker in ARMS.items():
            torch.manual_seed(seed)
            network = Network(maker)
            history = [_centres(network)]

            def after(
                epoch: int,
                network: Network = network,
                history: list[Tensor | None] = history,
                stops: bool = name == "convolution",
                digits: Digits = digits,
            ) -> bool:
                history.append(_centres(network))
                return stops and accuracy(network, digits) >= effort.goal

            train(network, digits, epochs, after=after)
            if name == "convolution":
                epochs = len(history) - 1
                taken.append(epochs)
            arms[name].append(_measured(network, digits, history))
            say(f"seed {seed}, {epochs} epochs, {name}: {arms[name][-1].accuracy:.3f}")
    return Comparison(effort.goal, taken, arms)


def _centres(network: Network) -> Tensor | None:
    found = [m.centres.detach().clone() for m in network.mixers() if isinstance(m, Quadratic)]
    return torch.stack(found) if found else None


def _measured(network: Network, digits: Digits, history: Sequence[Tensor | None]) -> Trained:
    found = Trained(accuracy(network, digits))
    with torch.no_grad():
        x = network.embedded(digits.images[digits.test][:64])
        for block, mixer in zip(network.blocks, network.mixers(), strict=True):
            if isinstance(mixer, Quadratic):
                norm = block.norm_1
                assert isinstance(norm, nn.LayerNorm)
                found.lowerings.append(lowering(mixer, norm(x)))
            taps = taps_of(mixer)
            if taps is not None:
                found.needed.append(heads_for(taps, 0.1))
                found.prunings.append(Pruning.of(taps))
            x = block(x)
    kept = [centres for centres in history if centres is not None]
    found.centres = torch.stack(kept) if kept else None
    return found


LITTLE = ("convolution", "attention at random", "attention at the convolution")


def little_data(effort: Effort, say: Say) -> dict[str, dict[int, list[float]]]:
    """Test accuracies by arm and number of training images, one a seed; equal numbers of steps."""
    found: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in effort.sizes} for name in LITTLE
    }
    for size in effort.sizes:
        for seed in range(effort.seeds):
            digits = Digits.split(seed, size)
            batch = min(64, size)
            epochs = -(-effort.steps // -(-size // batch))
            for name in LITTLE:
                torch.manual_seed(seed)
                network = Network(Convolution)
                if name != "convolution":
                    network = _as_attention(network, name == "attention at the convolution")
                train(network, digits, epochs, batch=batch)
                found[name][size].append(accuracy(network, digits))
        means = ", ".join(f"{sum(v := found[n][size]) / len(v):.3f}" for n in LITTLE)
        say(f"{size} images: {means} ({', '.join(LITTLE)})")
    return found


def _as_attention(network: Network, at_the_convolution: bool) -> Network:
    """The same network, the same numbers elsewhere, its convolutions replaced by attention."""
    for block in network.blocks:
        convolution = block.mixer
        assert isinstance(convolution, Convolution)
        layer = Quadratic(convolution.conv.in_channels, convolution.side)
        if at_the_convolution:
            layer.start_as(convolution, sharpness=6.0)
        block.mixer = layer
    return network


@dataclass(frozen=True)
class Found:
    """What a student of quadratic heads made of a convolution.

    Args:
        offsets: how many of the nine have a centre within a quarter of a pixel.
        error: the mean square of its error over that of the teacher's output.
        sharpness: the mean over its heads.
    """

    offsets: int
    error: float
    sharpness: float


STARTS = (0.5, 1.354, 4.0)
"""Sharpnesses to start from: soft, the one at which a shift learns most (T26), and sharp."""


def find_offsets(effort: Effort, say: Say) -> dict[float, list[Found]]:
    """Train heads of random centres on the output of a random 3 x 3 convolution, by sharpness."""
    found: dict[float, list[Found]] = {sharpness: [] for sharpness in STARTS}
    width, side = 4, 6
    axis = torch.arange(-1.0, 2.0)
    offsets = torch.cartesian_prod(axis, axis)
    for sharpness in STARTS:
        for seed in range(effort.starts):
            torch.manual_seed(seed)
            teacher = Convolution(width, side)
            student = Quadratic(width, side, spread=1.5, sharpness=sharpness)
            optimiser = torch.optim.Adam(student.parameters(), lr=0.02)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, effort.fits)
            for _ in range(effort.fits):
                x = torch.randn(8, side * side, width)
                with torch.no_grad():
                    wanted = teacher(x)
                optimiser.zero_grad()
                torch.autograd.backward(F.mse_loss(student(x), wanted))
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                x = torch.randn(256, side * side, width)
                wanted = teacher(x)
                error = F.mse_loss(student(x), wanted) / wanted.var()
                apart = torch.cdist(offsets, student.centres).amin(1)
            found[sharpness].append(
                Found(
                    int((apart <= 0.25).sum()),
                    error.item(),
                    student.log_sharpness.exp().mean().item(),
                )
            )
            last = found[sharpness][-1]
            say(f"from {sharpness}, seed {seed}: {last.offsets} of {HEADS}, error {last.error:.2g}")
    return found
