"""A figure of a layer's attention heads, beside the offsets of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import AnyConvolution, stencil_of

# Told apart with every kind of colour vision (Okabe and Ito).
QUERY, TARGET = "#0072B2", "#D55E00"
INK, LINES, PADDING = "#333333", "#D5DAE0", "#E9EDF2"
# From nothing at weight 0 to the full colour at weight 1; and what that looks like on white.
WEIGHT = LinearSegmentedColormap.from_list("weight", [TARGET + "00", TARGET])
WEIGHT_ON_WHITE = LinearSegmentedColormap.from_list("weight_on_white", ["white", TARGET])


def save_heads(
    path: Path, layer: MultiHeadSelfAttention, conv: AnyConvolution, image: Tensor, remark: str
) -> None:
    """Draw the attention of every head at one query, in the middle of an image.

    What a head attends to is measured, by `layer.attention_weights`; the arrow is the offset of its
    tap, as the convolution has it.

    Args:
        path: of the PNG file.
        layer: an attention layer in two dimensions.
        conv: the convolution in whose place it stands.
        image: (H, W), the background.
        remark: the second line of the title.
    """
    shape = tuple(image.shape)
    natural = layer.boundary == "natural"
    keys = layer.geometry.pixels(shape) if natural else layer.geometry.explicit_keys(shape)
    queries = layer.geometry.queries(shape)
    height, width = queries.shape
    middle = height // 2 * width + width // 2
    query = queries.positions()[middle].tolist()
    weights = layer.attention_weights(shape)[:, middle].detach().cpu().float()
    maps = weights[:, : keys.size].reshape(-1, *keys.shape)  # a sink is no place to show
    offsets: list[list[int]] = stencil_of(conv).offsets.tolist()
    rows, columns = conv.kernel_size

    figure = Figure(figsize=(10, 6.3), dpi=120, layout="constrained")
    figure.suptitle(
        "Attention expresses convolution (Theorem 1): one head for each tap\n" + remark,
        color=INK,
        fontsize=13,
    )
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(0.6, 1))
    kernel = left.subplots()
    draw_kernel(kernel, offsets, conv.dilation)
    bar = left.colorbar(
        ScalarMappable(cmap=WEIGHT_ON_WHITE),
        ax=kernel,
        location="bottom",
        shrink=0.9,
        ticks=(0, 0.5, 1),
    )
    bar.set_label("attention of query q, as measured", color=INK)
    left.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, edgecolor=QUERY, linewidth=2, label="query q"),
            *([] if natural else [Patch(facecolor=PADDING, edgecolor=LINES, label="padded keys")]),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        labelcolor=INK,
    )
    panels = right.subplots(rows, columns, squeeze=False).ravel()
    for head, (axes, offset) in enumerate(zip(panels, offsets, strict=True)):
        draw_head(axes, maps[head], keys.origin, image, query, offset)
        axes.set_title(f"head {head}", color=INK, fontsize=10, pad=3)
    figure.savefig(path, metadata={"Software": None})


def draw_kernel(axes: Axes, offsets: Sequence[Sequence[int]], dilation: Sequence[int]) -> None:
    """Draw the taps of a kernel where they stand about the query, with the heads that do them."""
    height, width = dilation
    for head, (down, right) in enumerate(offsets):
        corner = (right - width / 2, down - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor="white", edgecolor=INK))
        axes.text(
            right,
            down - 0.1 * height,
            str(head),
            color=TARGET,
            fontsize=22,
            ha="center",
            va="center",
        )
        axes.text(
            right,
            down + 0.27 * height,
            f"δ = ({down}, {right})".replace("-", "−"),
            color=INK,
            fontsize=9,
            ha="center",
            va="center",
        )
    mark_query(axes, (0, 0))
    axes.set_title("the kernel: one head for each offset δ = k − q", color=INK, fontsize=10)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.invert_yaxis()
    axes.set_axis_off()


def draw_head(
    axes: Axes,
    weights: Tensor,
    origin: Sequence[int],
    image: Tensor,
    query: Sequence[int],
    offset: Sequence[int],
) -> None:
    """Draw the weights of one head at one query over the padded image.

    Args:
        axes: where.
        weights: over the grid of the keys.
        origin: the position of the first key; the first pixel's is 0.
        image: the background.
        query: the query's position.
        offset: of the head's tap.
    """
    axes.set_facecolor(PADDING)
    faint = 3 * float(image.max())
    axes.imshow(image.numpy(), cmap="Greys", vmin=0, vmax=faint, extent=_extent(image, (0, 0)))
    grid = _extent(weights, origin)
    axes.imshow(weights.numpy(), cmap=WEIGHT, vmin=0, vmax=1, extent=grid)
    left, right, bottom, top = grid
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.spines[:].set_color(LINES)
    steps = (torch.arange(start + 1, stop) for start, stop in ((left, right), (top, bottom)))
    for line, positions in zip((axes.axvline, axes.axhline), steps, strict=True):
        for position in positions:
            line(float(position), color=LINES, linewidth=0.5)
    mark_query(axes, query)
    (row, column), (down, along) = query, offset
    if any(offset):
        axes.annotate(
            "",
            xy=(column + along, row + down),
            xytext=(column, row),
            arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0},
        )


def mark_query(axes: Axes, query: Sequence[int]) -> None:
    """Frame the query's pixel."""
    row, column = query
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=QUERY, linewidth=2.5)
    frame.set_zorder(3)
    axes.add_patch(frame)


def _extent(values: Tensor, origin: Sequence[int]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top edge of a grid of values, the first of which is at `origin`."""
    (row, column), (rows, columns) = origin, values.shape
    return column - 0.5, column + columns - 0.5, row + rows - 0.5, row - 0.5
