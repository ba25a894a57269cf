"""Figures: what the heads of a layer attend to at one query, over the image. Needs matplotlib.

Drawn are the layer's own weights, as `attention_weights` returns them, and the layer's own shifts:
a layer with wrong heads is drawn wrong. No state of pyplot is touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constructions.layer.attention import MultiHeadSelfAttention
from constructions.plotting.scene import MOST_HEADS, Scene

try:
    from matplotlib.figure import Figure, SubFigure
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "matplotlib":
        raise
    raise ModuleNotFoundError(
        "matplotlib is not installed; accepted: an environment with the extra plot, by "
        "pip install 'attention-constructions[plot]'",
        name="matplotlib",
    ) from error

from constructions.plotting.drawing import draw

__all__ = ["MOST_HEADS", "heads"]


def heads(
    layer: MultiHeadSelfAttention,
    image: Tensor,
    *,
    query: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Draw what each head of a layer attends to at one query, over the image.

    A panel for each head has its weights, the query's frame and an arrow along the head's shift,
    to its target, also where that is beyond the edge. Where any of these heads gives weight to the
    sink, what each gives stands below its panel. So does what a head gives to keys outside its
    panel, which shows only a part of a large image. Beside the panels: where the heads look, by
    their shifts. Heads that select no single place (mixing ones, and that of a pooling) have
    neither arrows nor that map.

    Only the weights of this query and of these heads are computed.

    Args:
        layer: an attention layer in one or two dimensions.
        image: (H, W), (C, H, W) or (1, C, H, W) for a layer in two dimensions; (L,), (C, L) or
            (1, C, L) in one. It is the background: three channels are the colours of a picture in
            two dimensions, any other number is shown by its mean. Where the layer's content terms
            are live it is also what the layer sees, and has its channels, dtype and device.
        query: index of the output in whose place the query stands, an integer for each spatial
            axis; None for the middle.
        heads: numbers of the heads; None for all, the first `MOST_HEADS` of more. The figure says
            how many are left out.
        figure: to draw on, beside what it has; None for a new one. If it has no layout engine it
            gets the constrained one; matplotlib's tight layout does not arrange what is drawn.

    Returns:
        The figure; the one that a SubFigure is part of.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a layer in three dimensions, an image of another shape or not real, a query or
            a head that there is not, no heads at all, or an image that the layer does not take.
    """
    if not isinstance(layer, MultiHeadSelfAttention):
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: a MultiHeadSelfAttention, as "
            "attention_from_conv returns"
        )
    if figure is not None and not isinstance(figure, Figure | SubFigure):
        raise TypeError(
            f"figure is a {type(figure).__name__}; accepted: None, a matplotlib Figure or SubFigure"
        )
    scene = Scene.of(layer, image, query, heads)
    parent: Figure | SubFigure
    if figure is None:
        parent = Figure(figsize=scene.inches, dpi=120, layout="constrained")
    else:
        parent = figure
    root: Figure = parent.figure  # that of a SubFigure is its root
    if root.get_layout_engine() is None:
        root.set_layout_engine("constrained")
    draw(scene, parent)
    return root
