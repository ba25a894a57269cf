"""Every encoding with every normaliser, convolution and border; and the page that shows it.

Evidence for T16, at saturation bit for bit, and for T7, at any sharpness; and of the scores
that factor for T4. The counts on the page
change with the version of Hypothesis; that they are there, and the rest of the page, may not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from constructions import attention_from_conv, certify
from constructions.encodings import (
    ENCODINGS,
    IMPOSSIBLE,
    Encoding,
    Gaussian,
)
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice, displacements
from constructions.normalisers import IMPOSSIBLE_NORMALISERS, NORMALISERS
from tests.pages.encodings import (
    CANNOT,
    PAGE,
    PAIRS,
    ROWS,
    Pair,
    cases,
    check,
    is_built,
    page,
    tally,
)
from tests.support.ledger import record
from tests.support.strategies import LAYERS, PADDING_MODES, Case, a_share, real_cases, sharpnesses

TEXT = PAGE.read_text(encoding="utf-8")
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=[" and ".join(pair) for pair in PAIRS])

RESTRICTED = {"t5", "alibi", "causal_alibi", "scalar"}
"""Those of few kernels and of no sharpness, which their own tests certify."""


def shown(pair: Pair) -> str:
    """The cell of a pair in the page's table of comparisons."""
    titles = next(line for line in TEXT.splitlines() if line.startswith("|  |"))
    column = titles.split("|").index(f" `{pair[1]}` ")
    row = [line for line in TEXT.splitlines() if line.startswith(f"| `{pair[0]}` |")][-1]
    return row.split("|")[column].strip()


@pytest.mark.evidence("normalisers_are_one_hot_from_their_gap", "exact")
@pytest.mark.parametrize("encoding", ENCODINGS)
@a_share
@given(data=st.data())
def test_layer_is_the_convolution_or_is_refused_with_its_reason(
    encoding: str, data: st.DataObject
) -> None:
    pair = (encoding, data.draw(st.sampled_from(sorted(NORMALISERS))))
    check(pair, data.draw(cases(pair)), record)


@pytest.mark.evidence("normalisers_are_one_hot_from_their_gap", "exact")
@every_pair
def test_cell_is_filled_by_a_run_and_on_the_page(pair: Pair) -> None:
    cell = shown(pair).replace(",", "")
    if is_built(pair):
        assert tally(pair, record) > 0
        assert int(cell) > 0
    else:
        assert cell == "—"


def test_page_is_what_the_program_writes() -> None:
    counts = {pair: int(shown(pair).replace(",", "").replace("—", "0")) for pair in PAIRS}
    assert page(counts) == TEXT, "run python -m tests.pages.encodings --write"


def test_page_describes_every_encoding_and_every_refusal() -> None:
    assert set(ROWS) == set(ENCODINGS)
    for argument, name, _ in REASONS:
        assert f'`{argument}="{name}"`' in CANNOT


@pytest.mark.evidence("layer_error_is_certified", "property")
@pytest.mark.parametrize("encoding", sorted(ENCODINGS.keys() - RESTRICTED))
@a_share
@given(data=st.data())
def test_certificate_holds_at_any_sharpness(encoding: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FORMATS))
    case: Case = data.draw(real_cases(dtype, LAYERS, PADDING_MODES))
    layer = attention_from_conv(
        case.conv,
        encoding=encoding,
        sharpness=data.draw(sharpnesses()),
        boundary=data.draw(st.sampled_from(["auto", "padded"])),
        evaluation=data.draw(st.sampled_from(["auto", "dense"])),
    )
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    record(ratio=certificate.ratio, dtype=dtype)
    assert certificate.holds, (layer, certificate)


REASONS: list[tuple[str, str, str]] = [
    *(("encoding", name, reason) for name, reason in IMPOSSIBLE.items()),
    *(("normaliser", name, reason) for name, reason in IMPOSSIBLE_NORMALISERS.items()),
]


@pytest.mark.parametrize(
    ("argument", "name", "reason"), REASONS, ids=[f"{a}={n}" for a, n, _ in REASONS]
)
def test_what_cannot_express_convolution_is_refused_by_its_theorem(
    argument: str, name: str, reason: str
) -> None:
    import theory

    options: dict[str, Any] = {argument: name}
    with pytest.raises(ValueError, match=f"{argument} is '{name}'") as raised:
        attention_from_conv(torch.nn.Conv2d(1, 1, 3), **options)
    assert reason in str(raised.value)
    assert any(module.THEOREM.slug in reason for module in theory.theorems())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encoding_names_the_theorem_that_proves_its_gap(encoding: str) -> None:
    import theory

    slugs = [module.THEOREM.slug for module in theory.theorems()]
    assert ENCODINGS[encoding].theorem in slugs


def test_names_of_what_can_and_what_cannot_are_apart() -> None:
    assert not ENCODINGS.keys() & IMPOSSIBLE.keys()
    assert not NORMALISERS.keys() & IMPOSSIBLE_NORMALISERS.keys()


# Which encodings factor ---------------------------------------------------------------------------


def below_peak(encoding: Encoding, places: Tensor, shifts: Tensor, grid: Lattice) -> Tensor:
    """Scores at all places, less those at the shifts, (H, M)."""
    features, queries = encoding.encode(torch.cat([places, shifts]), shifts, grid)
    scores = queries @ features.T
    return scores[:, : len(places)] - scores[:, len(places) :].diagonal().unsqueeze(-1)


GRID = Lattice.box((4, 5))
PLACES = displacements(GRID, GRID).positions().double()
SHIFTS = Lattice((3, 2), (1, 2), (-1, 0)).positions().double()
FACTORING = {n: e for n, e in ENCODINGS.items() if e.axes(2) is not None and n != "alibi"}
OTHERS = {
    "flattened": ENCODINGS["flattened"],
    "circle": ENCODINGS["circle"],
    "bias_table": ENCODINGS["bias_table"],
    "gaussian with axes that mix": Gaussian(((1.0, 0.5), (0.5, 1.0))),
}


@pytest.mark.evidence("attention_is_soft_padding_then_convolution", "property")
@pytest.mark.parametrize("encoding", FACTORING.values(), ids=FACTORING)
def test_score_of_an_encoding_that_factors_is_a_sum_over_axes_of_functions_of_the_distance(
    encoding: Encoding,
) -> None:
    parts = encoding.axes(2)
    assert parts is not None
    here = torch.zeros(1, 1, dtype=torch.float64)
    whole = below_peak(encoding, PLACES, SHIFTS, GRID)
    for head, shift in enumerate(SHIFTS):
        added = sum(
            below_peak(part, (PLACES - shift)[:, axis : axis + 1], here, GRID.axis(axis))[0]
            for axis, part in enumerate(parts)
        )
        # Each score is a difference of two, on either side.
        error = 4 * encoding.score_error(SHIFTS, GRID)
        apart = (whole[head] - added).abs().max().item()
        record(ratio=apart / error if apart else 0.0, dtype=torch.float64)
        assert apart <= error


@pytest.mark.evidence("attention_is_soft_padding_then_convolution", "control")
@pytest.mark.parametrize("encoding", OTHERS.values(), ids=OTHERS)
def test_score_of_an_encoding_that_does_not_factor_is_no_sum_over_axes(encoding: Encoding) -> None:
    assert encoding.axes(2) is None
    box = displacements(GRID, GRID)
    scores = below_peak(encoding, PLACES, SHIFTS, GRID).reshape(-1, *box.shape)
    mixed = scores.diff(dim=1).diff(dim=2)  # 0 for f(δ_1) + g(δ_2)
    # Four scores, each a difference of two.
    error = 8 * encoding.score_error(SHIFTS, GRID)
    assert mixed.abs().max() > error


# Borders that a pair does not have ----------------------------------------------------------------


@pytest.mark.parametrize("normaliser", ["relu", "sigmoid"])
def test_normaliser_that_sees_nothing_off_the_grid_does_not_replicate(normaliser: str) -> None:
    conv = torch.nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate")
    assert attention_from_conv(conv, normaliser=normaliser).boundary == "padded"
    with pytest.raises(ValueError, match="no natural border for padding_mode 'replicate'"):
        attention_from_conv(conv, normaliser=normaliser, boundary="natural")


def test_gap_of_bounded_reach_is_not_asked_of_outputs_that_a_dilation_alone_allows() -> None:
    """Torch lets a kernel of one tap append outputs up to its dilation, past any shift."""
    conv = torch.nn.ConvTranspose1d(1, 1, 1, dilation=9, output_padding=8)
    assert attention_from_conv(conv, encoding="rotary").boundary == "padded"
    assert attention_from_conv(conv).boundary == "natural"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"encoding": "scalar"}, "mix"), ({"encoding": "circle", "sharpness": 3.0}, "sums over axes")],
    ids=["heads that mix", "scores that are no sums"],
)
def test_evaluation_that_does_not_apply_is_refused(options: dict[str, Any], reason: str) -> None:
    conv = torch.nn.Conv1d(1, 1, 3)
    with pytest.raises(ValueError, match=f"evaluation 'factored' does not apply: .*{reason}"):
        attention_from_conv(conv, evaluation="factored", **options)
