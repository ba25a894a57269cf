"""Filters: the four score terms on one of scikit-learn's photographs.

`python -m tests.pages.filters --write` filters it by the layer with its content terms alive, and
writes `docs/filters.md` with its figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.filters import Deformable, NonlocalMeans, NormalisedMean, bilateral
from tests.support.ledger import ROOT

PAGE = ROOT / "docs" / "filters.md"
FIGURE = ROOT / "docs" / "figures" / "filters.png"

NOISE = 0.08
"""Standard deviation of what is added to pixels between 0 and 1."""
MISSING = 0.5
"""The share of the pixels that are taken away."""
BLUR, SPATIAL, TONAL, STRENGTH = 0.7, 1.2, 0.16, 0.4


@cache
def photograph() -> Tensor:
    """The pagoda of scikit-learn's `china.jpg`, one pixel for 6 x 6: (1, 3, 44, 60)."""
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).float() / 255
    cut = pixels[60:324, 140:500].permute(2, 0, 1).unsqueeze(0)
    return F.avg_pool2d(cut, 6)


@cache
def noisy() -> Tensor:
    """The photograph with normal noise."""
    generator = torch.Generator().manual_seed(0)
    image = photograph()
    return image + NOISE * torch.randn(image.shape, generator=generator)


@cache
def missing() -> Tensor:
    """Which pixels are missing: (1, 1, H, W), of 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, 1, *photograph().shape[2:], generator=generator) < MISSING).float()


def lens() -> Tensor:
    """Offsets towards the middle, as a magnifying glass has: (1, 2, H, W)."""
    height, width = photograph().shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    radius = (rows.square() + columns.square()).sqrt() / 20
    pull = -0.7 * (1 - radius).clamp(min=0)
    return (torch.stack([rows, columns]) * pull).round().unsqueeze(0)


@cache
def panels() -> dict[str, Tensor]:
    """Every image of the figure by its title."""
    image, rough, gone = photograph(), noisy(), missing()
    one = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(one.weight)
    with torch.no_grad():
        return {
            "photograph": image,
            "with noise": rough,
            "position: convolution": NormalisedMean(BLUR, channels=3)(rough, 0 * gone),
            "content: non-local means": NonlocalMeans(3, STRENGTH, channels=3)(rough),
            "both: bilateral": bilateral(SPATIAL, TONAL, channels=3)(rough),
            "half of the pixels gone": image * (1 - gone),
            "certainty: normalised": NormalisedMean(BLUR, channels=3)(
                image * (1 - gone), -200 * gone
            ),
            "query and position: deformable": Deformable(one)(image, lens()),
        }


def error(name: str) -> float:
    """The root mean square of what a panel is off the photograph."""
    return (panels()[name] - photograph()).square().mean().sqrt().item()


COMPARED = (
    "with noise",
    "position: convolution",
    "content: non-local means",
    "both: bilateral",
    "half of the pixels gone",
    "certainty: normalised",
)


def page() -> str:
    """The whole page, computed."""
    rows = "\n".join(f"| {name} | {error(name):.3f} |" for name in COMPARED)
    height, width = photograph().shape[2:]
    return PARTS.format(height=height, width=width, rows=rows)


PARTS = """# Filters

Every score term of the paper's layer is a classical filter: [four score terms are four filters](theorems/four_score_terms_are_four_filters.md). Here they are on a photograph, each computed by `MultiHeadSelfAttention` with its content terms alive, as `constructions.filters` sets them. `python -m tests.pages.filters --write` makes this page and its figure, and a test computes every number again.

![Eight panels: a photograph of a pagoda; with noise; a convolution, non-local means and a bilateral filter of that; the photograph with half of its pixels missing, and filled; and seen through a magnifying glass.](figures/filters.png)

The photograph is scikit-learn's `china.jpg`, {height} x {width} pixels of it. The root mean square of the difference to it, for pixels between 0 and 1:

| | off the photograph |
| --- | ---: |
{rows}

A convolution cannot tell an edge from noise, since its weights are the same everywhere. Content can: the weights of non-local means and of the bilateral filter depend on the image. Which of them is better depends on the image and on their strengths, and no claim is made about it. The magnifying glass is a deformable convolution with one tap: each pixel says where to look.

```python
import torch

from constructions.filters import bilateral

image = torch.rand(1, 3, 24, 32)
smooth = bilateral(spatial=1.2, tonal=0.16, channels=3)
weights = smooth.layer.attention_weights((24, 32), smooth.tokens(image), queries=[400])
assert weights.shape == (1, 1, 1, 24 * 32)  # what the pixel number 400 is a mean of
```
"""  # noqa: E501, one line for each paragraph of the page


def save_figure(path: Path) -> None:
    """Draw the panels."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    figure = Figure(figsize=(12, 4.9), dpi=110, layout="constrained")
    for axes, (name, image) in zip(figure.subplots(2, 4).flat, panels().items(), strict=True):
        axes.imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axes.set_title(name, fontsize=10, color="#333333")
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, and print the page or write it with its figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.pages.filters", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and its figure")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page(), encoding="utf-8")
        save_figure(FIGURE)
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
