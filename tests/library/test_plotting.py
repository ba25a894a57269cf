"""The figure of a layer's heads shows the layer's own weights, where they stand."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from torch import Tensor, nn

from constructions import MultiHeadSelfAttention, attention_from_conv, plotting
from constructions.plotting.drawing import LEAST_POINTS, QUERY
from tests.support.helpers import enlivened, filled, integers, refused
from tests.support.ledger import ROOT

# Reading a figure ---------------------------------------------------------------------------------


def panels(figure: Figure) -> dict[int, Axes]:
    """The panels of a figure by the numbers of their heads."""
    found = {}
    for axes in figure.axes:
        if match := re.fullmatch(r"(?:head )?(\d+)", axes.get_title()):
            number = int(match.group(1))
            assert number not in found
            found[number] = axes
    return found


def map_of_shifts(figure: Figure) -> Axes:
    """Where the heads look."""
    (axes,) = (axes for axes in figure.axes if "offset δ" in axes.get_title())
    return axes


def grid(axes: Axes, index: int) -> Tensor:
    """What an image of a panel holds: 0 the background, 1 the weights; NaN where it has nothing."""
    return torch.tensor(axes.images[index].get_array().filled(math.nan))  # type: ignore[union-attr]


def framed(axes: Axes) -> list[list[float]]:
    """The middles of the query's frames."""
    return [
        [patch.get_y() + patch.get_height() / 2, patch.get_x() + patch.get_width() / 2]
        for patch in axes.patches
        if isinstance(patch, Rectangle) and same_color(patch.get_edgecolor(), QUERY)
    ]


def arrows(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """Tail and head of every arrow, each as row and column."""
    return [
        ([text.xyann[1], text.xyann[0]], [text.xy[1], text.xy[0]])
        for text in axes.texts
        if isinstance(text, Annotation)
    ]


def shown(axes: Axes, place: Sequence[float]) -> bool:
    """Whether the whole cell of a place is within the limits of a panel."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    row, column = place
    return left <= column - 0.5 and column + 0.5 <= right and top <= row - 0.5 and row <= bottom


# What stands where --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A layer and an image, and where query and keys stand, counted by hand, as row and column."""

    source: nn.Module
    shape: tuple[int, ...]
    output: tuple[int, ...]
    query: tuple[int, int]
    keys: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    spacing: tuple[int, int] = (1, 1)
    outputs: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    selects: bool = True

    def layer(self) -> MultiHeadSelfAttention:
        source: Any = self.source
        layer: MultiHeadSelfAttention = attention_from_conv(source, **self.options)
        return layer

    def number(self) -> int:
        """Of the query, row-major."""
        number = 0
        for index, size in zip(self.output, self.outputs, strict=True):
            number = number * size + index
        return number


NATURAL, PADDED = {"boundary": "natural"}, {"boundary": "padded"}
# fmt: off
DRAWN = {
    "middle_of_a_natural_border": Drawn(
        nn.Conv2d(1, 1, 3, padding=1), (8, 8), (4, 4), (4, 4), (8, 8), outputs=(8, 8),
        options=NATURAL),
    "corner_beside_a_sink": Drawn(
        nn.Conv2d(1, 1, 3, padding=1), (8, 7), (0, 6), (0, 6), (8, 7), outputs=(8, 7),
        options=NATURAL),
    "padded_keys": Drawn(
        nn.Conv2d(1, 1, 3, padding=(1, 2)), (4, 5), (3, 0), (3, 0), (6, 9), (-1, -2),
        outputs=(4, 7), options=PADDED),
    "strided_dilated_rectangle": Drawn(
        nn.Conv2d(1, 1, (2, 3), dilation=(1, 2), stride=(2, 3), padding=(1, 2)), (8, 7), (3, 2),
        (6, 6), (10, 11), (-1, -2), outputs=(5, 3), options=PADDED),
    "strided_dilated_with_sink": Drawn(
        nn.Conv2d(1, 1, 3, dilation=2, stride=2, padding=2), (9, 9), (0, 2), (0, 4), (9, 9),
        outputs=(5, 5), options=NATURAL),
    "query_beyond_the_pixels": Drawn(
        nn.Conv2d(1, 1, 1, padding=1), (3, 3), (4, 4), (4, 4), (3, 3), outputs=(5, 5),
        options=NATURAL),
    "replicate": Drawn(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"), (5, 6), (0, 0), (0, 0), (5, 6),
        outputs=(5, 6), options=NATURAL),
    "circular": Drawn(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), (5, 5), (4, 0), (4, 0), (5, 5),
        outputs=(5, 5), options=NATURAL),
    "even_kernel": Drawn(
        nn.Conv2d(1, 1, 2, padding="same"), (5, 6), (2, 3), (2, 3), (5, 6), outputs=(5, 6),
        options=NATURAL),
    "transposed_with_padded_keys": Drawn(
        nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1), (5, 6), (4, 5), (4, 5), (11, 13),
        (-1, -1), outputs=(9, 11), options=PADDED),
    "transposed_with_sink": Drawn(
        nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1), (5, 6), (4, 5), (4, 5), (5, 6),
        spacing=(2, 2), outputs=(9, 11), options=NATURAL),
    "one_tap": Drawn(nn.Conv2d(1, 1, 1), (3, 4), (1, 2), (1, 2), (3, 4), outputs=(3, 4)),
    "row_of_nine": Drawn(
        nn.Conv2d(1, 1, (1, 9), padding=(0, 4)), (6, 7), (3, 3), (3, 3), (6, 15), (0, -4),
        outputs=(6, 7), options=PADDED),
    "seven_by_seven": Drawn(
        nn.Conv2d(1, 1, 7, padding=3), (9, 9), (8, 1), (8, 1), (9, 9), outputs=(9, 9),
        options=NATURAL),
    "one_dimension": Drawn(
        nn.Conv1d(1, 1, 4, dilation=2, padding=3), (11,), (5,), (0, 5), (1, 17), (0, -3),
        outputs=(11,), options=PADDED),
    "one_dimension_with_sink": Drawn(
        nn.Conv1d(1, 1, 3, stride=2, padding=1), (90,), (0,), (0, 0), (1, 90), outputs=(45,),
        options=NATURAL),
    "one_dimension_transposed": Drawn(
        nn.ConvTranspose1d(1, 1, 2, stride=3), (4,), (2,), (0, 2), (1, 4), spacing=(1, 3),
        outputs=(11,), options=NATURAL),
    "blurred": Drawn(
        nn.Conv2d(1, 1, 3, padding=1), (30, 7), (1, 3), (1, 3), (30, 7), outputs=(30, 7),
        options=NATURAL | {"sharpness": 0.5}),
    "weights_above_one": Drawn(
        nn.Conv2d(1, 1, 3, padding=1), (5, 5), (2, 2), (2, 2), (7, 7), (-1, -1), outputs=(5, 5),
        options=PADDED | {"normaliser": "relu", "sharpness": 9.0}),
    "bfloat16": Drawn(
        nn.Conv2d(1, 1, 3, padding=1, dtype=torch.bfloat16), (5, 5), (2, 2), (2, 2), (7, 7),
        (-1, -1), outputs=(5, 5), options=PADDED | {"sharpness": 1.0}),
    "float64": Drawn(
        nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64), (5, 5), (2, 2), (2, 2), (7, 7),
        (-1, -1), outputs=(5, 5), options=PADDED | {"sharpness": 1.0}),
    "pooling": Drawn(
        nn.AvgPool2d(3, stride=2, padding=1), (7, 7), (1, 2), (1, 3), (9, 9), (-1, -1),
        outputs=(4, 4), selects=False),
    "mixing": Drawn(
        nn.Conv1d(1, 1, 3, padding=1), (9,), (4,), (0, 4), (1, 11), (0, -1), outputs=(9,),
        options=PADDED | {"encoding": "scalar"}, selects=False),
}
# fmt: on
each = pytest.mark.parametrize("name", DRAWN)


@cache
def drawn_panels(name: str) -> tuple[MultiHeadSelfAttention, dict[int, Axes]]:
    """The layer of a case, and its panels."""
    case = DRAWN[name]
    layer = case.layer()
    return layer, panels(plotting.heads(layer, torch.rand(case.shape), query=case.output))


@each
def test_panel_shows_the_weights_of_its_head_bit_for_bit(name: str) -> None:
    case, (layer, drawn) = DRAWN[name], drawn_panels(name)
    weights = layer.attention_weights(case.shape)[:, case.number()].detach()
    assert sorted(drawn) == list(range(layer.num_heads))
    for head, axes in drawn.items():
        cells = grid(axes, 1)
        at_keys = cells[:: case.spacing[0], :: case.spacing[1]]
        row = weights[head, : math.prod(case.keys)].double().reshape(case.keys)
        assert torch.equal(at_keys, row)
        assert int((~cells.isnan()).sum()) == row.numel()
        high, wide = (1 + s * (n - 1) for s, n in zip(case.spacing, case.keys, strict=True))
        first, other = (origin - 0.5 for origin in case.origin)
        assert tuple(axes.images[1].get_extent()) == (other, other + wide, first + high, first)
        low, top = axes.images[1].get_clim()
        assert low == 0
        assert top is not None
        assert top >= float(weights.max())


@each
def test_query_is_framed_and_its_arrow_ends_at_the_shift_of_the_head(name: str) -> None:
    case, (layer, drawn) = DRAWN[name], drawn_panels(name)
    for head, axes in drawn.items():
        assert framed(axes) == [list(case.query)]
        assert shown(axes, case.query)
        shift = layer.heads.shifts[head].tolist()
        down, along = [0.0] * (2 - len(shift)) + shift
        target = [case.query[0] + down, case.query[1] + along]
        stays = not any(shift) or not case.selects
        assert arrows(axes) == ([] if stays else [(list(case.query), target)])
        assert stays or shown(axes, target)


@pytest.mark.parametrize(
    "name",
    [n for n, case in DRAWN.items() if case.selects and "sharpness" not in case.options],
)
def test_arrow_ends_on_the_key_that_has_all_weight_or_the_sink_has_it(name: str) -> None:
    case, (_, drawn) = DRAWN[name], drawn_panels(name)
    for axes in drawn.values():
        here = [float(n) for n in case.query]
        ((_, end),) = arrows(axes) or [(here, here)]
        cells = grid(axes, 1)
        place = [int(e - o) for e, o in zip(end, case.origin, strict=True)]
        inside = all(0 <= p < n for p, n in zip(place, cells.shape, strict=True))
        if inside and not cells[tuple(place)].isnan():
            assert cells.nan_to_num().nonzero().tolist() == [place]
            assert axes.get_xlabel() in {"", "sink 0"}
        elif case.source.padding_mode == "zeros":
            assert not cells.nan_to_num().any()
            assert axes.get_xlabel() == "sink 1"
        else:
            (reached,) = cells.nonzero().tolist()
            clamped = [min(max(p, 0), n - 1) for p, n in zip(place, cells.shape, strict=True)]
            wrapped = [p % n for p, n in zip(place, cells.shape, strict=True)]
            assert reached == (wrapped if name == "circular" else clamped)


def test_wrong_heads_are_drawn_wrong() -> None:
    conv = nn.Conv2d(1, 1, 3)
    layer = attention_from_conv(conv)
    with torch.no_grad():
        layer.positional_shift.copy_(layer.positional_shift.flip(0))
    figure = plotting.heads(layer, torch.rand(7, 7))
    # The first tap's offset is (0, 0), the last one's (2, 2).
    assert arrows(panels(figure)[0]) == [([2, 2], [4, 4])]
    assert grid(panels(figure)[0], 1).nonzero().tolist() == [[4, 4]]
    at = {text.get_text(): text.get_position() for text in map_of_shifts(figure).texts}
    assert at["0"][0] == 2
    assert at["8"][0] == 0


def test_heads_of_one_shift_share_a_cell_of_the_map() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, (1, 3)))
    with torch.no_grad():
        layer.positional_shift[2] = layer.positional_shift[0]
    axes = map_of_shifts(plotting.heads(layer, torch.rand(4, 5)))
    numbers = [text.get_text() for text in axes.texts if "δ" not in text.get_text()]
    assert numbers == ["0, 2", "1"]
    assert axes.get_title().startswith("the heads at each")


def test_trained_shifts_are_drawn_where_they_are() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3), sharpness=1.0)
    moved = torch.tensor([[0.25, -0.125], [0.0, 0.0625], [-0.5, 0.25]]).repeat(3, 1)
    with torch.no_grad():
        layer.positional_shift.add_(moved)
    figure = plotting.heads(layer, torch.rand(9, 9))
    axes = map_of_shifts(figure)
    at = {text.get_text(): text.get_position() for text in axes.texts}
    for head, panel in panels(figure).items():
        down, along = layer.heads.shifts[head].tolist()
        assert arrows(panel) == [([3, 3], [3 + down, 3 + along])]
        assert at[str(head)][0] == along


# The sink, and what a panel does not show ---------------------------------------------------------


def test_weight_of_the_sink_stands_below_each_panel_with_its_digits() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3, padding=1), boundary="natural", sharpness=2.0)
    weights = layer.attention_weights((5, 5)).detach()[:, 0, -1]
    for head, axes in panels(plotting.heads(layer, torch.rand(5, 5), query=(0, 0))).items():
        assert axes.get_xlabel() == f"sink ≈ {weights[head].item():.3g}"


def test_sink_is_not_spoken_of_where_no_head_uses_it() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3, padding=1), boundary="natural")
    assert layer.has_sink
    drawn = panels(plotting.heads(layer, torch.rand(5, 5)))
    assert {axes.get_xlabel() for axes in drawn.values()} == {""}


def test_weight_outside_a_panel_is_written_below_it() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    layer = attention_from_conv(conv, boundary="natural")
    figure = plotting.heads(layer, torch.rand(96, 5), query=(0, 2))
    labels = [panels(figure)[head].get_xlabel() for head in range(9)]
    assert labels == ["elsewhere 1"] * 3 + [""] * 6  # the row above is the last one
    (overview,) = (axes for axes in figure.axes if "part" in axes.get_title())
    assert "96 × 5" in overview.get_title()
    assert tuple(overview.get_ylim()) == (95.5, -1.5)


@pytest.mark.parametrize("query", [(0, 0), (48, 48), (95, 20)])
def test_part_of_a_large_image_holds_query_and_targets(query: tuple[int, int]) -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 5, padding=2), boundary="natural")
    for axes in panels(plotting.heads(layer, torch.rand(96, 96), query=query)).values():
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert right - left == bottom - top == 16
        assert all(shown(axes, end) for _, end in arrows(axes))
        assert shown(axes, query)


# Images -------------------------------------------------------------------------------------------

GREY, COLOUR, FIVE = integers(4, 6), integers(3, 4, 6), integers(5, 4, 6)
LINE = integers(12)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, GREY),
        (GREY.unsqueeze(0), GREY),
        (GREY[None, None], GREY),
        (GREY.to(torch.int32), GREY),
        (GREY > 0, (GREY > 0).double()),
        (GREY.clone().requires_grad_(), GREY),
        (FIVE, FIVE.double().mean(0)),
        (FIVE.unsqueeze(0), FIVE.double().mean(0)),
        (FIVE[:2], FIVE[:2].double().mean(0)),
        (torch.zeros(4, 6), torch.zeros(4, 6)),
    ],
    ids=[
        "matrix", "one_channel", "batch", "integers", "booleans", "with_gradient", "five_channels",
        "batch_of_five_channels", "two_channels", "flat",
    ],
)  # fmt: skip
def test_background_is_the_image_or_the_mean_of_its_channels(
    image: Tensor, expected: Tensor
) -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 1))
    ((_, axes),) = panels(plotting.heads(layer, image)).items()
    assert torch.equal(grid(axes, 0), expected.detach().double())


@pytest.mark.parametrize("image", [LINE, LINE[None], LINE[None, None]], ids=["line", "row", "one"])
def test_background_in_one_dimension_is_a_row(image: Tensor) -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 1))
    ((_, axes),) = panels(plotting.heads(layer, image)).items()
    assert torch.equal(grid(axes, 0), LINE[None].double())


def test_three_channels_of_a_line_are_no_colours() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 1))
    ((_, axes),) = panels(plotting.heads(layer, integers(3, 7))).items()
    assert torch.equal(grid(axes, 0), integers(3, 7).double().mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("image", "colours"),
    [
        (COLOUR.abs() / 3, (COLOUR.abs() / 3).double()),
        (COLOUR, (COLOUR.double() + 3) / 6),
        ((COLOUR + 3).to(torch.uint8) * 40, (COLOUR.double() + 3) * 40 / 255),
    ],
    ids=["from_0_to_1", "of_any_range", "bytes"],
)
def test_three_channels_are_colours_half_as_far_from_white(image: Tensor, colours: Tensor) -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 1))
    for given in (image, image.unsqueeze(0)):
        ((_, axes),) = panels(plotting.heads(layer, given)).items()
        pale = 1 - (1 - colours.permute(1, 2, 0)) / 2
        assert torch.equal(grid(axes, 0)[..., :3], pale)
        assert bool((grid(axes, 0)[..., 3] == 1).all())


def test_pixel_that_is_not_finite_has_no_shade() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 1))
    image = torch.arange(6.0).reshape(2, 3)
    image[0, 0], image[1, 1] = math.inf, math.nan
    ((_, axes),) = panels(plotting.heads(layer, image)).items()
    assert grid(axes, 0).isnan().nonzero().tolist() == [[0, 0], [1, 1]]
    colours = image.expand(3, 2, 3)
    ((_, axes),) = panels(plotting.heads(layer, colours)).items()
    assert (grid(axes, 0)[..., 3] == 0).nonzero().tolist() == [[0, 0], [1, 1]]


def test_pixels_of_a_transposed_layer_stand_apart() -> None:
    layer = attention_from_conv(nn.ConvTranspose2d(1, 1, 2, stride=(2, 3)))
    drawn = panels(plotting.heads(layer, GREY))
    for axes in drawn.values():
        cells = grid(axes, 0)
        assert torch.equal(cells[::2, ::3], GREY.double())
        assert int((~cells.isnan()).sum()) == GREY.numel()


# Layers whose weights depend on the image ---------------------------------------------------------


def test_layer_with_live_content_sees_the_image_itself() -> None:
    layer = enlivened(attention_from_conv(filled(nn.Conv2d(2, 1, 3, padding=1)), sharpness=1.0))
    x = integers(2, 4, 5) / 4
    weights = layer.attention_weights((4, 5), x).detach()[0, :, 2 * 5 + 2]
    for image in (x, x.unsqueeze(0)):
        for head, axes in panels(plotting.heads(layer, image)).items():
            cells = grid(axes, 1)
            assert torch.equal(cells, weights[head, : cells.numel()].double().reshape(cells.shape))


@pytest.mark.parametrize(
    ("image", "given", "accepted"),
    [
        (torch.rand(4, 5), "1 channels", "2, since the layer's content terms are live"),
        (torch.rand(3, 4, 5), "3 channels", "2, since the layer's content terms are live"),
        (torch.rand(2, 4, 5).double(), "float64", "float32 on cpu, since"),
    ],
    ids=["no_channel", "three_channels", "dtype"],
)
def test_layer_with_live_content_refuses_another_image(
    image: Tensor, given: str, accepted: str
) -> None:
    layer = enlivened(attention_from_conv(filled(nn.Conv2d(2, 1, 3, padding=1))))
    with refused(ValueError, "image", given, accepted):
        plotting.heads(layer, image)


# Which heads, and at what cost --------------------------------------------------------------------


def words(figure: Figure) -> list[str]:
    """What the titles of a figure and its parts say."""

    def titles(part: Figure | SubFigure) -> Iterator[str]:
        yield part.get_suptitle()
        for inner in part.subfigs:
            yield from titles(inner)

    return [title for title in titles(figure) if title]


def test_default_draws_every_head_up_to_a_number_and_says_how_many_it_left_out() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 11, padding=5), boundary="natural")
    figure = plotting.heads(layer, torch.rand(12, 12))
    assert sorted(panels(figure)) == list(range(plotting.MOST_HEADS))
    assert words(figure) == [f"{plotting.MOST_HEADS} of 121 heads, 72 left out"]
    labels = [text.get_text() for text in map_of_shifts(figure).texts]
    assert labels == [str(head) for head in range(121)]


def test_chosen_heads_are_drawn_in_their_order() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 3, padding=1))
    figure = plotting.heads(layer, torch.rand(5, 5), heads=(7, 0, 4))
    assert list(panels(figure)) == [7, 0, 4]
    assert words(figure) == ["3 of 9 heads, 6 left out"]
    found = {head: arrows(axes) for head, axes in panels(figure).items()}
    assert found == {7: [([2, 2], [3, 2])], 0: [([2, 2], [1, 1])], 4: []}


def test_nothing_is_said_where_no_head_is_left_out() -> None:
    assert words(plotting.heads(attention_from_conv(nn.Conv2d(1, 1, 3)), torch.rand(5, 5))) == []


def test_only_the_query_and_the_heads_that_are_drawn_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    compute = MultiHeadSelfAttention.attention_weights

    def spy(self: MultiHeadSelfAttention, *arguments: Any, **options: Any) -> Tensor:
        weights = compute(self, *arguments, **options)
        asked.append((options["queries"], list(options["heads"]), tuple(weights.shape)))
        return weights

    monkeypatch.setattr(MultiHeadSelfAttention, "attention_weights", spy)
    layer = attention_from_conv(nn.Conv2d(1, 1, 5, padding=2), boundary="padded")
    plotting.heads(layer, torch.rand(96, 96))
    plotting.heads(layer, torch.rand(96, 96), query=(95, 3), heads=[24, 2])
    assert asked == [
        ([48 * 96 + 48], list(range(25)), (25, 1, 10_000)),
        ([95 * 96 + 3], [24, 2], (2, 1, 10_000)),
    ]


# Legibility ---------------------------------------------------------------------------------------


def extents(figure: Figure) -> tuple[list[Bbox], list[tuple[Bbox, Bbox]]]:
    """Where the words of the panels stand, and each label of the map with its cell."""
    figure.draw_without_rendering()
    written = [
        text.get_window_extent()
        for axes in panels(figure).values()
        for text in (axes.title, axes.xaxis.label)
        if text.get_text()
    ]
    axes = map_of_shifts(figure)
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    labelled = []
    for text in axes.texts:
        box = text.get_window_extent()
        (cell,) = (c for c in cells if c.contains_point(((box.x0 + box.x1) / 2, box.y0)))
        labelled.append((box, cell.get_window_extent()))
    return written, labelled


@pytest.mark.parametrize(
    ("source", "shape", "labels"),
    [
        (nn.Conv2d(1, 1, 1), (8, 8), 2),
        (nn.Conv2d(1, 1, 3, padding=1), (8, 8), 18),
        (nn.Conv2d(1, 1, 3, padding=1), (40, 40), 18),
        (nn.Conv2d(1, 1, 3, dilation=4, padding=4), (8, 8), 18),
        (nn.Conv2d(1, 1, 5, padding=2), (96, 96), 50),
        (nn.Conv2d(1, 1, 7, padding=3), (8, 12), 49),
        (nn.Conv2d(1, 1, 11, padding=5), (12, 12), 121),
        (nn.Conv2d(1, 1, 31, padding=15), (8, 8), 0),
        (nn.Conv2d(1, 1, (1, 9), padding=(0, 4)), (6, 20), 9),
        (nn.Conv2d(1, 1, (9, 1), padding=(4, 0)), (20, 6), 18),
        (nn.Conv1d(1, 1, 3, padding=1), (12,), 6),
        (nn.Conv1d(1, 1, 31, padding=15), (99,), 31),
    ],
    ids=[
        "1x1", "3x3", "3x3_large", "3x3_dilated", "5x5_large", "7x7", "11x11", "31x31", "1x9",
        "9x1", "line_of_3", "line_of_31",
    ],
)  # fmt: skip
def test_labels_are_legible_and_apart_or_drop_out(
    source: nn.Conv2d, shape: tuple[int, ...], labels: int
) -> None:
    layer = attention_from_conv(source, boundary="natural")
    figure = plotting.heads(layer, torch.rand(shape), query=(0,) * len(shape))
    sizes = [float(text.get_fontsize()) for text in map_of_shifts(figure).texts]
    assert len(sizes) == labels
    assert min(sizes, default=LEAST_POINTS) >= LEAST_POINTS
    written, labelled = extents(figure)
    for box, cell in labelled:
        assert cell.x0 <= box.x0 <= box.x1 <= cell.x1
        assert cell.y0 <= box.y0 <= box.y1 <= cell.y1
    for number, box in enumerate(written):
        assert not any(box.overlaps(other) for other in written[:number])


# The figure ---------------------------------------------------------------------------------------


def test_figure_that_is_given_is_drawn_on() -> None:
    layer, own = attention_from_conv(nn.Conv2d(1, 1, 3)), Figure(figsize=(10, 6))
    own.suptitle("mine")
    assert plotting.heads(layer, torch.rand(5, 5), figure=own) is own
    assert len(panels(own)) == 9
    assert tuple(own.get_size_inches()) == (10, 6)
    assert words(own) == ["mine"]


def test_part_of_a_figure_is_drawn_on_and_the_rest_is_left() -> None:
    layer, own = attention_from_conv(nn.Conv2d(1, 1, 3)), Figure(figsize=(16, 6))
    ((left, right),) = own.subfigures(1, 2, squeeze=False)
    axes = left.subplots()
    (line,) = axes.plot([0, 1])
    assert plotting.heads(layer, torch.rand(5, 5), figure=right) is own
    assert axes.get_children().count(line) == 1
    assert axes.images[:] == []
    own.draw_without_rendering()
    middle = (own.bbox.x0 + own.bbox.x1) / 2
    for panel in panels(own).values():
        assert panel.get_window_extent().x0 >= middle
    assert len(panels(own)) == 9


def test_layout_of_a_figure_that_has_one_is_kept() -> None:
    layer, own = attention_from_conv(nn.Conv2d(1, 1, 1)), Figure(layout="tight")
    engine = own.get_layout_engine()
    plotting.heads(layer, torch.rand(5, 5), figure=own)
    assert own.get_layout_engine() is engine


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_matplotlib_is_imported_when_asked_for_and_pyplot_never() -> None:
    code = (
        "import io, sys, torch, constructions\n"
        "print('matplotlib' in sys.modules)\n"
        "layer = constructions.attention_from_conv(torch.nn.Conv2d(1, 1, 3))\n"
        "constructions.plotting.heads(layer, torch.rand(5, 5)).savefig(io.BytesIO())\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    assert run(code).split() == ["False", "True", "False"]


def test_missing_matplotlib_is_an_import_error_that_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import constructions\n"
        "try:\n    constructions.plotting\nexcept ImportError as error:\n    print(error)\n"
    )
    told = run(code)
    assert told.startswith("matplotlib is not installed; accepted: ")
    assert "pip install 'attention-constructions[plot]'" in told


# What is refused ----------------------------------------------------------------------------------

LAYER = attention_from_conv(nn.Conv2d(1, 1, 3))
IMAGE = torch.rand(6, 5)


def call(layer: Any = LAYER, image: Any = IMAGE, **options: Any) -> Callable[[], object]:
    return lambda: plotting.heads(layer, image, **options)


VOLUME = attention_from_conv(nn.Conv3d(1, 1, 1))
OUTPUTS = "a tuple of integers from (0, 0) to (3, 2)"
# fmt: off
REFUSED = {
    "convolution": (call(nn.Conv2d(1, 1, 3)), TypeError, "layer", "Conv2d",
                    "a MultiHeadSelfAttention"),
    "three_dimensions": (call(VOLUME, torch.rand(2, 2, 2)), ValueError, "layer", "3 spatial axes",
                         "1 or 2"),
    "list": (call(image=[[1.0]]), TypeError, "image", "list", "a torch.Tensor"),
    "line_for_two_dimensions": (call(image=torch.rand(5)), ValueError, "image", "(5,)", "(H, W)"),
    "batch_of_two": (call(image=torch.rand(2, 1, 5, 5)), ValueError, "image", "(2, 1, 5, 5)",
                     "(1, C, H, W)"),
    "empty": (call(image=torch.rand(0, 5)), ValueError, "image", "(0, 5)", "none of them 0"),
    "no_channels": (call(image=torch.rand(0, 5, 5)), ValueError, "image", "(0, 5, 5)",
                    "none of them 0"),
    "complex": (call(image=torch.rand(5, 5).to(torch.complex64)), ValueError, "image", "complex64",
                "real numbers"),
    "image_for_one_dimension": (
        call(attention_from_conv(nn.Conv1d(1, 1, 1)), torch.rand(2, 1, 5)), ValueError, "image",
        "(2, 1, 5)", "(L,), (C, L) or (1, C, L)"),
    "number_as_query": (call(query=3), TypeError, "query", "int", OUTPUTS),
    "word_as_query": (call(query="middle"), TypeError, "query", "str", OUTPUTS),
    "fraction_in_query": (call(query=(1.5, 0)), TypeError, "query", "(1.5, 0)", OUTPUTS),
    "truth_in_query": (call(query=(True, 0)), TypeError, "query", "(True, 0)", OUTPUTS),
    "short_query": (call(query=(1,)), ValueError, "query", "(1,)", OUTPUTS),
    "long_query": (call(query=(1, 1, 1)), ValueError, "query", "(1, 1, 1)", OUTPUTS),
    "query_beyond_the_output": (call(query=(4, 0)), ValueError, "query", "(4, 0)", OUTPUTS),
    "negative_query": (call(query=(0, -1)), ValueError, "query", "(0, -1)", OUTPUTS),
    "number_as_heads": (call(heads=3), TypeError, "heads", "int", "integers from 0 to 8"),
    "head_that_there_is_not": (call(heads=[9]), ValueError, "heads", "(9,)",
                               "integers from 0 to 8"),
    "no_heads": (call(heads=()), ValueError, "heads", "empty", "at least one"),
    "axes_as_figure": (call(figure=Figure().subplots()), TypeError, "figure", "Axes",
                       "a matplotlib Figure or SubFigure"),
}
# fmt: on


@pytest.mark.parametrize(
    ("attempt", "kind", "argument", "given", "accepted"), REFUSED.values(), ids=REFUSED
)
def test_bad_argument_is_named_with_its_value_and_what_is_accepted(
    attempt: Callable[[], object],
    kind: type[Exception],
    argument: str,
    given: str,
    accepted: str,
) -> None:
    with refused(kind, argument, given, accepted):
        attempt()


def test_refused_call_leaves_the_figure_as_it_was() -> None:
    figure = Figure()
    with pytest.raises(ValueError, match="query"):
        plotting.heads(LAYER, IMAGE, query=(9, 9), figure=figure)
    assert figure.axes == []
    assert figure.get_layout_engine() is None
