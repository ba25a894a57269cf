"""Networks of the sizes that people use, to be converted: random weights, evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """A residual block, 1 x 1, 3 x 3, 1 x 1 (arXiv 1512.03385, fig. 5)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != out or stride > 1:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Rectified sum of body and shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """A network of the size of ResNet-50: 53 convolutions, 25.6 million parameters."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, 1 if block else stride))
            channels = 4 * width
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(*layers, *head).eval()


class ConvNeXtBlock(nn.Module):
    """7 x 7 depthwise, normalised, then two dense layers (arXiv 2201.03545, fig. 4)."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the image and what the block makes of it."""
        tokens = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        mixed: Tensor = self.contract(F.gelu(self.expand(tokens)))
        return x + mixed.permute(0, 3, 1, 2)


def convnext_block() -> nn.Module:
    """A block of the first stage of ConvNeXt-T, for 56 x 56 pixels."""
    return ConvNeXtBlock().eval()


def training_step(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """A step of SGD with momentum, on an image and its mirror image."""
    images = torch.cat([x, x.flip(-1)])  # of one image alone some batch norms have no variance
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        network(images).square().mean().backward()
        optimiser.step()

    return step


def stored_bytes(module: nn.Module) -> int:
    """Parameters and buffers, those that are shared once."""
    stored = [t.untyped_storage() for t in (*module.parameters(), *module.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in stored}.values())
