"""The experiments' code: what is trained, measured and drawn. No accuracy is asserted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from experiments import __main__ as command
from experiments import record, studies
from experiments.measures import Interval, Pruning, convolved, floors, heads_for, lowering, taps_of
from experiments.mixers import ARMS, HEADS, TERMS, Attention, Convolution, Learned, Quadratic
from experiments.network import Digits, Network, accuracy, train
from experiments.studies import SMOKE, Comparison, Found, Trained
from tests.support.helpers import filled, integers
from tests.support.oracle import convolve, numbers

WIDTH, SIDE = 3, 4


def naive(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """The definition, query by query and head by head, from the layer's own scores."""
    weights = layer.weights(x)
    weights = weights.expand(len(x), *weights.shape[-3:])
    y = torch.zeros_like(x)
    for n in range(len(x)):
        for q in range(x.shape[1]):
            seen = [weights[n, h, q] @ x[n] for h in range(HEADS)]
            y[n, q] = layer.mix(torch.cat(seen))
    return y


@pytest.mark.parametrize("name", ARMS)
def test_arm_is_the_attention_or_the_convolution_that_it_says(name: str) -> None:
    torch.manual_seed(0)
    layer = ARMS[name](WIDTH, SIDE).double()
    x = integers(2, SIDE**2, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        assert y.shape == x.shape
        if isinstance(layer, Attention):
            weights = layer.weights(x)
            assert weights.shape[-3:] == (HEADS, SIDE**2, SIDE**2)
            assert (weights.dim() == 4) == bool(layer.terms)
            # As many terms of products of size 1 as a row and a token have.
            allowed = HEADS * (SIDE**2 + WIDTH) * 8 * torch.finfo(torch.float64).eps
            assert (y - naive(layer, x)).abs().max() <= allowed * x.abs().max()


@pytest.mark.parametrize("terms", [(), *((term,) for term in TERMS), TERMS], ids=str)
def test_each_content_term_depends_on_what_it_says(terms: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer = Learned(WIDTH, SIDE, terms)
    x = torch.randn(1, SIDE**2, WIDTH)
    other = x.clone()
    other[0, 5] += 1  # one token, which is a key of all and a query of its own
    with torch.no_grad():
        before, after = layer.weights(x), layer.weights(other)
    changed = (before != after).reshape(HEADS, SIDE**2, SIDE**2).any(0)
    of_key = "query-key" in terms or "key" in terms
    of_query = "query-key" in terms or "query-position" in terms
    rows = changed.any(1)
    assert bool(rows[5]) == (of_key or of_query)
    assert bool(rows[[0, 15]].any()) == of_key


def test_quadratic_layer_at_the_convolution_is_it_up_to_its_leak() -> None:
    convolution = filled(Convolution(WIDTH, SIDE)).double()
    layer = Quadratic(WIDTH, SIDE).double()
    layer.start_as(convolution, sharpness=800.0)  # one-hot in float64
    x = integers(2, SIDE**2, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(layer(x), convolution(x))
    layer.start_as(convolution, sharpness=1.0)
    with torch.no_grad():
        assert not torch.equal(layer(x), convolution(x))


def test_convolution_at_whole_offsets_is_the_oracle_s() -> None:
    image = integers(1, 2, 4, 5, dtype=torch.float64)
    axis = torch.arange(-1.0, 2.0)
    offsets = torch.cartesian_prod(axis, axis)
    matrices = integers(9, 2, 3, dtype=torch.float64)
    found = convolved(image, offsets, matrices, integers(3, dtype=torch.float64))
    kernel = matrices.reshape(3, 3, 2, 3).permute(3, 2, 0, 1)
    wanted = convolve(
        numbers(image).astype(int),
        numbers(kernel).astype(int),
        numbers(integers(3)).astype(int),
        padding=1,
        padding_mode="replicate",
    )
    assert np.array_equal(numbers(found), wanted.astype(float))


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 30.0])
def test_trained_layer_is_within_the_bound_of_its_lowered_convolution(sharpness: float) -> None:
    torch.manual_seed(0)
    layer = Quadratic(WIDTH, SIDE, sharpness=sharpness)
    found = lowering(layer, torch.randn(2, SIDE**2, WIDTH))
    assert found.ratio <= 1
    assert 1 <= found.taps <= HEADS
    assert 0 < found.on_target <= 1
    exact = Quadratic(WIDTH, SIDE)
    exact.start_as(Convolution(WIDTH, SIDE), sharpness=800.0)
    near = lowering(exact, torch.randn(2, SIDE**2, WIDTH))
    assert near.distance <= 100 * torch.finfo(torch.float32).eps
    assert near.taps == HEADS
    assert near.on_target == 1


def test_heads_are_counted_by_the_tail_of_the_taps() -> None:
    taps = torch.diag(torch.tensor([10.0, 1.0, 0.5, 0.0]))
    assert [heads_for(taps, floor) for floor in (0.0, 0.06, 0.2, 1.0)] == [3, 2, 1, 0]
    same = Quadratic(WIDTH, SIDE)
    with torch.no_grad():
        same.centres.zero_()
    merged = taps_of(same)
    assert merged is not None
    assert merged.shape == (1, WIDTH**2)  # heads of one pixel are one tap
    assert torch.equal(merged[0], sum(same.matrices(), torch.zeros(())).flatten())
    assert taps_of(Learned(WIDTH, SIDE)) is None


def test_pruning_is_the_count_and_the_tail() -> None:
    sobel = torch.tensor([[-1.0], [0], [1], [-2], [0], [2], [-1], [0], [1]])
    found = Pruning.of(sobel)
    assert (found.masked, found.floors) == (2, [1.0, 0.0])  # of rank one, of both signs
    diagonal = Pruning.of(torch.diag(torch.tensor([4.0, 3.0])))
    assert (diagonal.masked, diagonal.floors) == (2, [1.0, 0.6, 0.0])
    assert floors(torch.zeros(2, 3)) == [0.0, 0.0, 0.0]
    torch.manual_seed(0)
    taps = taps_of(Convolution(WIDTH, SIDE))
    assert taps is not None
    assert Pruning.of(taps).masked == len(Pruning.of(taps).floors) - 1 == HEADS


def test_interval_is_student_s() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.centre == 2
    assert interval.half == 4.303 / math.sqrt(3)
    assert math.isnan(Interval.of([1.0]).half)


def test_split_is_disjoint_and_smaller_ones_are_parts_of_larger_ones() -> None:
    small, large = Digits.split(3, 50), Digits.split(3)
    assert not set(small.training.tolist()) & set(small.test.tolist())
    assert torch.equal(small.test, large.test)
    assert small.training.tolist() == large.training[:50].tolist()
    assert len(large.training) + len(large.test) == 1797


def test_training_stops_when_it_is_told_to_and_centres_move() -> None:
    digits = Digits.split(0, 64)
    epochs: list[int] = []

    def after(epoch: int) -> bool:
        epochs.append(epoch)
        return epoch == 2

    torch.manual_seed(0)
    network = Network(Quadratic)
    first = next(iter(network.mixers()))
    assert isinstance(first, Quadratic)
    before = first.centres.detach().clone()
    train(network, digits, 9, after=after)
    assert epochs == [1, 2]
    assert not torch.equal(before, first.centres)
    assert 0 <= accuracy(network, digits) <= 1


def test_attention_takes_the_place_of_the_convolution_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    network = Network(Convolution)
    x = torch.rand(2, 8, 8)
    with torch.no_grad():
        wanted = network(x)
    changed = studies._as_attention(network, at_the_convolution=True)
    for mixer in changed.mixers():
        assert isinstance(mixer, Quadratic)
        with torch.no_grad():
            mixer.log_sharpness.fill_(math.log(800.0))
    with torch.no_grad():
        # Sums in another order, of 9 x 24 products; two blocks, each followed by a normalisation.
        assert (changed(x) - wanted).abs().max() <= 2**12 * torch.finfo(torch.float32).eps


def test_every_study_runs_in_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--smoke", "--only", "offsets", "little-data"])
    told = capsys.readouterr()
    assert "## Do centres find the offsets?" in told.out
    assert "## Little data" in told.out
    assert "seed 0" in told.err  # progress


@pytest.mark.thorough
def test_comparison_runs_too(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--smoke", "--only", "comparison"])
    assert "| learned + all three |" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--write", "--smoke"], ["--seeds", "1"], ["--only", "nothing"]])
def test_bad_arguments_are_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(given)


def invented() -> Comparison:
    """A comparison of invented numbers."""
    torch.manual_seed(0)
    layer = Quadratic(WIDTH, SIDE)
    low = lowering(layer, torch.randn(1, SIDE**2, WIDTH))
    centres = torch.randn(3, 2, HEADS, 2)
    of_two = Pruning(2, [1.0, 0.6, 0.0])
    of_nine = Pruning(9, [1.0, *(0.4 for _ in range(8)), 0.0])
    arms: dict[str, Any] = {
        name: [
            Trained(0.9, [low], [4], [of_two], centres),
            Trained(0.95, [low], [5], [of_nine], centres),
        ]
        for name in ARMS
    }
    return Comparison(0.92, [7, 8], arms)


def test_record_pairs_each_arm_with_the_convolution_and_says_what_was_not_reached() -> None:
    text = record.of_comparison(invented())
    assert "7 (not reached), 8." in text
    assert "| quadratic | 92.5 ± 31.8 | 0.0 ± 0.0 | 4.5 |" in text
    assert "| quadratic | 5.5 | 20 | 20 | 20 | 20 | 20 | 50 |" in text
    found = {1.354: [Found(9, 0.1, 2.0), Found(3, 0.3, 4.0)]}
    assert "| 1.354 | 6.0 (3 to 9) | 1 of 2 | 0.2 | 3 |" in record.of_offsets(found)


def test_figures_are_drawn(tmp_path: Path) -> None:
    record.save_centres(invented(), tmp_path / "new" / "centres.png")
    little = {name: {50: [0.5, 0.6], 100: [0.7, 0.8]} for name in studies.LITTLE}
    record.save_little_data(little, tmp_path / "curve.png")
    for path in (tmp_path / "new" / "centres.png", tmp_path / "curve.png"):
        assert path.stat().st_size > 5_000
    assert "| 50 | 100 |" in record.of_little_data(little)


def test_smoke_is_smaller_than_the_real_run() -> None:
    assert SMOKE.epochs < studies.Effort().epochs
    assert isinstance(nn.ModuleList(Network(Convolution).mixers())[0], Convolution)
