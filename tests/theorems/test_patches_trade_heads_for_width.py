"""On tokens that are patches of P^d pixels a convolution takes no fewer positional heads than the rank of its kernel by shifts of patches, and if its taps lie in a box of side P that rank is the number of shifts Δ from which a tap reads, which one-hot heads attain.

T20, `docs/theorems/patches_trade_heads_for_width.md`. Everything here is integers; timm's own class
is in `tests/stock/test_vit.py`.
"""  # noqa: E501, the claim is one sentence

from itertools import product
from math import ceil

import numpy as np
import pytest
from flint import fmpq_mat
from hypothesis import assume, given
from hypothesis import strategies as st

from constructions.stock.patches import patch_heads, patch_matrices
from tests.support.ledger import record
from tests.support.oracle import convolve
from tests.support.proofs import claimed_equations, discharged_equations
from theory import patches_trade_heads_for_width as theory
from theory.tools.proof import ProofError

SLUG = "patches_trade_heads_for_width"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

Offset = tuple[int, ...]
Kernel = dict[Offset, list[int]]

entries = st.integers(-4, 4)


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@st.composite
def kernels(
    draw: st.DrawFn, *, boxed: bool = False, around: bool = False, inputs: int = 1
) -> tuple[Kernel, int]:
    """A kernel with some taps, and the side of a patch.

    If boxed within a box of that side, and if around one that has a place for a tap at 0.
    """
    d, side = draw(st.sampled_from([(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3)]))
    sides = [draw(st.integers(1, side if boxed else (7 if d == 1 else 4))) for _ in range(d)]
    corners = [st.integers(1 - n, 0) if around else st.integers(-4, 2) for n in sides]
    corner = [draw(place) for place in corners]
    count = inputs * draw(st.integers(1, 2))
    row = st.lists(entries, min_size=count, max_size=count)
    kernel = {
        tuple(c + o for c, o in zip(corner, offset, strict=True)): draw(row)
        for offset in product(*map(range, sides))
    }
    assume(any(any(values) for values in kernel.values()))
    return kernel, side


def oracle_on_patches(kernel: Kernel, side: int, image: np.ndarray) -> np.ndarray:
    """The convolution by the oracle, of one channel each way, zeros all around."""
    offsets = np.array(list(kernel))
    low, high = offsets.min(axis=0), offsets.max(axis=0)
    weight = np.zeros((1, 1, *(high - low + 1)), dtype=object)
    for offset, (value, *_) in kernel.items():
        weight[(0, 0, *(np.array(offset) - low))] = value
    around = [(max(0, -int(a)), max(0, int(b))) for a, b in zip(low, high, strict=True)]
    padded = np.pad(image, around)
    whole = convolve(padded[None, None], weight)[0, 0]
    first = [int(a) + before for a, (before, _) in zip(low, around, strict=True)]
    cut = tuple(slice(f, f + n) for f, n in zip(first, image.shape, strict=True))
    found: np.ndarray = whole[cut]
    return found


@exact
@given(drawn=kernels(), data=st.data())
def test_one_hot_heads_on_patches_are_the_convolution(
    drawn: tuple[Kernel, int], data: st.DataObject
) -> None:
    kernel, side = drawn
    d = len(next(iter(kernel)))
    grid = tuple(data.draw(st.integers(1, 3)) for _ in range(d))
    shape = tuple(n * side for n in grid)
    image = np.array(
        data.draw(st.lists(entries, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))),
        dtype=object,
    ).reshape(shape)
    places = list(product(range(side), repeat=d))

    def patch(of: np.ndarray, t: Offset) -> np.ndarray:
        if any(not 0 <= a < n for a, n in zip(t, grid, strict=True)):
            return np.zeros(len(places), dtype=object)
        pixels = [
            of[tuple(side * a + e for a, e in zip(t, place, strict=True))] for place in places
        ]
        return np.array(pixels, dtype=object)

    one_channel = {offset: values[:1] for offset, values in kernel.items()}
    wanted = oracle_on_patches(one_channel, side, image)
    for t in product(*map(range, grid)):
        found = np.zeros(len(places), dtype=object)
        for shift in theory.patch_shifts(kernel, side):
            matrix = np.array(theory.patch_matrix(one_channel, side, shift, 1), dtype=object)
            key = tuple(a + b for a, b in zip(t, shift, strict=True))
            found = found + patch(image, key) @ matrix
        assert (found == patch(wanted, t)).all()
    record()


@exact
@given(drawn=kernels(boxed=True))
def test_rank_of_a_box_of_side_p_is_the_number_of_its_shifts(drawn: tuple[Kernel, int]) -> None:
    kernel, side = drawn
    assert theory.flattened(kernel, side).rank() == len(theory.patch_shifts(kernel, side))
    record()


@exact
@given(drawn=kernels(boxed=True, around=True))
def test_shifts_of_a_box_around_zero_are_those_of_agreeing_signs(
    drawn: tuple[Kernel, int],
) -> None:
    kernel, side = drawn
    assert theory.patch_shifts(kernel, side) == theory.by_signs(kernel)


@exact
@given(drawn=kernels())
def test_rank_is_at_most_shifts_and_distances(drawn: tuple[Kernel, int]) -> None:
    kernel, side = drawn
    d, width = len(next(iter(kernel))), len(next(iter(kernel.values())))
    matrices = [
        [v for line in theory.patch_matrix(kernel, side, shift, 1) for v in line]
        for shift in theory.patch_shifts(kernel, side)
    ]
    rank = fmpq_mat(matrices).rank()
    assert rank == theory.flattened(kernel, side).rank()
    assert rank <= min(len(matrices), (2 * side - 1) ** d * width)
    assert all(any(row) for row in matrices)
    record()


@exact
@pytest.mark.parametrize("reach", [(1, 1), (1, 2), (2, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("side", [5, 7])
@pytest.mark.parametrize("channels", [(1, 1), (2, 1), (1, 3), (2, 2)], ids=str)
def test_width_is_what_a_patch_of_outputs_reads(
    reach: tuple[int, int], side: int, channels: tuple[int, int]
) -> None:
    # One axis, K I in the middle and I elsewhere, cut to the channels.
    inputs, outputs = channels
    identity = [int(i == o) for i, o in product(range(inputs), range(outputs))]
    kernel: Kernel = {
        (n,): [(1 if n else 1 + sum(reach)) * v for v in identity]
        for n in range(-reach[0], reach[1] + 1)
    }
    ranks = [
        fmpq_mat(theory.patch_matrix(kernel, side, shift, inputs)).rank()
        for shift in theory.patch_shifts(kernel, side)
    ]
    total, heads = theory.heads_of_width(side, reach, 1, min(channels), 4)
    assert sum(ranks) == total == (side + sum(reach)) * min(channels)
    assert sum(ceil(rank / 4) for rank in ranks) == heads


@exact
@given(drawn=kernels(inputs=2), head_dim=st.sampled_from([1, 4, 16]))
def test_heads_of_the_construction_are_the_matrices_and_no_wider_than_they_may_be(
    drawn: tuple[Kernel, int], head_dim: int
) -> None:
    import torch

    kernel, side = drawn
    outputs = len(next(iter(kernel.values()))) // 2
    shifts = torch.tensor(list(kernel))
    taps = torch.tensor(list(kernel.values()), dtype=torch.float64).view(-1, 2, outputs)
    heads = patch_heads(patch_matrices(shifts, taps, side), head_dim)
    assert all(h.value.shape[1] == h.output.shape[0] <= head_dim for h in heads)
    assert {h.shift for h in heads} == set(theory.patch_shifts(kernel, side))
    for shift in theory.patch_shifts(kernel, side):
        wanted = torch.tensor(theory.patch_matrix(kernel, side, shift, 2), dtype=torch.float64)
        parts = [h.value @ h.output for h in heads if h.shift == shift]
        assert torch.equal(torch.stack(parts).sum(dim=0), wanted)
        used = min(int(wanted.any(dim=0).sum()), int(wanted.any(dim=1).sum()))
        assert len(parts) == ceil(used / head_dim)
    record()


# What the checks reject ---------------------------------------------------------------------------


@control
def test_a_tap_more_than_a_box_of_side_p_may_need_fewer_heads_than_shifts() -> None:
    # Side 2 and taps 1 apart in value: one pixel of input shows at both ends.
    kernel: Kernel = {(n,): [1] for n in range(-4, 5)}
    shifts = theory.patch_shifts(kernel, 1)
    assert theory.flattened(kernel, 1).rank() == 1 < len(shifts)
    wide: Kernel = {(n,): [1] for n in range(-8, 9)}
    assert theory.flattened(wide, 2).rank() < len(theory.patch_shifts(wide, 2))


@control
def test_nine_heads_are_not_needed_for_a_plus() -> None:
    plus: Kernel = {(0, 0): [5], (0, 1): [1], (1, 0): [1], (0, -1): [1], (-1, 0): [1]}
    full: Kernel = {offset: [1] for offset in product((-1, 0, 1), repeat=2)}
    assert len(theory.patch_shifts(plus, 3)) == 5 < len(theory.patch_shifts(full, 3)) == 9


@control
def test_shifts_are_not_the_patches_of_the_taps() -> None:
    # A tap one pixel to the right reads from its own patch and from the next one.
    assert theory.patch_shifts({(1,): [1]}, 2) == [(0,), (1,)]


@control
@pytest.mark.parametrize("name", ["flattened", "part_rank"])
def test_proof_rejects_wrong_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(theory, name)
    wrong = {
        "flattened": lambda kernel, side: original(kernel, side + 1),
        "part_rank": lambda shift, side, reach: original(shift, side, reach[::-1]),
    }
    monkeypatch.setattr(theory, name, wrong[name])
    with pytest.raises(ProofError):
        theory.prove()


@control
def test_patch_matrix_of_the_other_sign_is_not_the_convolution() -> None:
    kernel: Kernel = {(0,): [1], (1,): [2]}
    right = theory.patch_matrix(kernel, 2, (0,), 1)
    assert right == [[1, 0], [2, 1]]
    assert right != [list(row) for row in zip(*right, strict=True)]
