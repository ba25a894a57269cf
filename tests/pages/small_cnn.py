"""A small CNN, trained on digits, as an unmodified `nn.TransformerEncoder`: page and figure.

`python -m tests.pages.small_cnn --write` trains the network, carries its weights over, runs both on
every test image in two formats and writes `docs/a-small-cnn-as-a-transformer.md` with its figure.
The numbers are of the machine that wrote them, since training is; what they say is tested anew.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import Stock, stock
from constructions.demo.network import Digits, reproducible
from tests.support.ledger import ROOT

PAGE = ROOT / "docs" / "a-small-cnn-as-a-transformer.md"
FIGURE = ROOT / "docs" / "figures" / "small-cnn.png"

SHAPE = (8, 8)
STEPS, BATCH = 300, 64


def trained(digits: Digits) -> nn.Sequential:
    """Two convolutions and a ReLU, whose output of one pixel is the logits of ten classes."""
    images, labels = digits.training_images, digits.training_labels
    with reproducible(0):
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 8))
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(STEPS):
            batch = torch.randint(len(labels), (BATCH,))
            optimiser.zero_grad()
            loss = F.cross_entropy(network(images[batch]).flatten(1), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return network.eval()


@dataclass(frozen=True)
class Run:
    """Both networks on some images, (N, 10) each, float64.

    Args:
        exact: the CNN's logits, in float64.
        found: the Transformer's.
        bounds: what these may err by.
        cnn: the CNN's in the format of the Transformer.
    """

    exact: Tensor
    found: Tensor
    bounds: Tensor
    cnn: Tensor

    @classmethod
    def of(cls, network: nn.Sequential, images: Tensor, dtype: torch.dtype) -> Run:
        """Carry the weights over and run, in bands of images."""
        network = copy.deepcopy(network).to(dtype)
        images = images.to(dtype)
        encoder: Stock = stock.encoder(network, SHAPE).eval()
        bounds = encoder.bound(images)
        assert bounds is not None
        with torch.no_grad():
            found = torch.cat([encoder(part) for part in torch.split(images, 50)])
            cnn = network(images)
            exact = copy.deepcopy(network).double()(images.double())
        exact, found, bounds, cnn = (y.flatten(1).double() for y in (exact, found, bounds, cnn))
        return cls(exact, found, bounds, cnn)

    @property
    def error(self) -> Tensor:
        """Of every logit."""
        return (self.found - self.exact).abs()

    @property
    def same(self) -> Tensor:
        """Whether both networks choose the same class, by image."""
        return self.found.argmax(1) == self.cnn.argmax(1)

    @property
    def certified(self) -> Tensor:
        """Whether the bound alone says that the CNN over the reals chooses the same class."""
        chosen = self.found.argmax(1, keepdim=True)
        lowest = self.found.gather(1, chosen) - self.bounds.gather(1, chosen)
        highest = (self.found + self.bounds).scatter(1, chosen, -torch.inf).amax(1, keepdim=True)
        return (lowest > highest).squeeze(1)

    @property
    def margin(self) -> Tensor:
        """Half of what the first class is ahead of the second by."""
        first, second = self.found.topk(2).values.unbind(1)
        return (first - second) / 2


# The page -----------------------------------------------------------------------------------------


def page(network: nn.Sequential, digits: Digits) -> str:
    """The page, from a run on all test images."""
    runs = {
        name: Run.of(network, digits.test_images, dtype)
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64))
    }
    count = len(digits.test_labels)
    right = int((runs["float32"].cnn.argmax(1) == digits.test_labels).sum())
    lines = ["| | float32 | float64 |", "|---|---:|---:|"]
    cells: dict[str, Callable[[Run], str]] = {
        "predictions that are the CNN's": lambda run: f"{int(run.same.sum())} of {count}",
        "certified to be those of the exact CNN": lambda run: (
            f"{int(run.certified.sum())} of {count}"
        ),
        "largest error of a logit": lambda run: f"{float(run.error.max()):.1e}",
        "largest bound": lambda run: f"{float(run.bounds.max()):.1e}",
        "median half margin": lambda run: f"{float(run.margin.median()):.1f}",
    }
    for title, cell in cells.items():
        lines.append(f"| {title} | {cell(runs['float32'])} | {cell(runs['float64'])} |")
    text = HEAD.replace("RIGHT", f"{right} of {count}")
    return f"{text}\n\n" + "\n".join(lines) + f"\n\n{TAIL}\n"


HEAD = """# A small CNN as a Transformer

Two convolutions and a ReLU were trained on scikit-learn's handwritten digits, 8 × 8 pixels; they choose the right class for RIGHT test images. Their weights were then carried over to an `nn.TransformerEncoder` of two layers: torch's own class, unmodified, residual connections, LayerNorm and feed-forward parts included. A token is a pixel. Nothing is trained again, and nothing but the Transformer computes: the ten logits are read from one of its output tokens. It makes the same predictions, and a theorem says so before it is run: [a transformer block is convolution and ReLU](theorems/a_transformer_block_is_convolution_and_relu.md).

![Left: a digit, the eight feature maps of the CNN's first layer, and the same maps read from the tokens of the Transformer's first layer. Right: for all test images the errors of the logits, their bounds, and half of the margins of the decisions, on a logarithmic scale.](figures/small-cnn.png)"""  # noqa: E501, one line for each paragraph of the page

TAIL = """A prediction is certified if the first class is ahead of every other by more than both bounds: then the CNN's logits over the reals, which are within the bounds, choose the same class. `python -m tests.pages.small_cnn --write` makes this page; the numbers are those of the machine that wrote it, as training is. Its test trains the network again, and asks for equal predictions, for errors within their bounds and for certificates.

```python
import torch
from torch import nn

from constructions import stock

network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 8))  # trained
encoder = stock.encoder(network, (8, 8))

images = torch.rand(5, 1, 8, 8)
logits, bound = encoder(images).flatten(1), encoder.bound(images).flatten(1)
assert torch.equal(logits.argmax(1), network(images).flatten(1).argmax(1))
assert ((logits - network.double()(images.double()).flatten(1)).abs() <= bound).all()

module = encoder.module  # what it is
assert type(module) is nn.TransformerEncoder and len(module.layers) == 2
assert module.layers[0].self_attn.num_heads == 65  # one for each tap of 8 x 8, and one for the bias
```

## How it is done

- *Tokens.* One for each of the 64 pixels, and one of no pixel, which stands for the zeros beyond the edge. A token holds its pixel, where it stands, room for the outputs of both layers, and a large constant, each with both signs, so that LayerNorm finds a mean of zero and the variance of the constant.
- *Attention* has a head for each tap of the kernel; a head looks at one pixel and applies the matrix of its tap. The residual connection adds the result to channels that were empty.
- *Feed-forward.* It adds the ReLU of −y to y, which is the ReLU of y.
- *Cost.* The CNN has 5,210 parameters, the Transformer has more than two million, nearly all of them zero. This is about what a Transformer can express, not about how to compute a convolution."""  # noqa: E501, likewise


# The figure ---------------------------------------------------------------------------------------


def save_figure(path: Path, network: nn.Sequential, digits: Digits, count: int = 450) -> None:
    """Draw the feature maps of one digit by both networks, and errors, bounds and margins."""
    from matplotlib.figure import Figure  # here, since the numbers do not need it

    run = Run.of(network, digits.test_images[:count], torch.float32)
    image = digits.test_images[:1]
    encoder: Any = stock.encoder(network, SHAPE)
    with torch.no_grad():
        maps = network[:2](image)[0]
        tokens = encoder.module.layers[0](*encoder.tokens(image))
        read = encoder.blocks.pairs.read(tokens[:, :-1], 1).mT.reshape(8, *SHAPE)
    figure = Figure(figsize=(11, 2.6), dpi=120, layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(2, 1))
    axes = left.subplots(2, 9)
    for row, (name, found) in enumerate((("CNN", maps), ("Transformer", read))):
        for column, part in enumerate([image[0, 0], *found]):
            panel = axes[row, column]
            panel.imshow(part.numpy(), cmap="gray_r" if column == 0 else "viridis")
            panel.set_xticks([])
            panel.set_yticks([])
        axes[row, 0].set_ylabel(name)
    left.suptitle("A digit, and what the first layer makes of it", fontsize=10)
    panel = right.subplots()
    for name, numbers, colour in (
        ("errors of logits", run.error, "#0072B2"),
        ("their bounds", run.bounds, "#D55E00"),
        ("half margins", run.margin, "#009E73"),
    ):
        exponents = numbers.clamp(min=1e-9).log10().flatten().tolist()
        panel.hist(exponents, bins=40, alpha=0.7, color=colour, label=name, density=True)
    panel.set_xlabel("log10, float32")
    panel.set_yticks([])
    panel.set_title("All test images", fontsize=10)
    panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, run, and print the page or write it with its figure."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages.small_cnn", description=main.__doc__
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and its figure")
    options = parser.parse_args(arguments)
    digits = Digits.split(0)
    network = trained(digits)
    text = page(network, digits)
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
        save_figure(FIGURE, network, digits)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
