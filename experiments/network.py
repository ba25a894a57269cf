"""A small vision transformer on digits, whose mixer of tokens is what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from experiments.mixers import Maker

SIDE = 4
"""Tokens on each axis: 2 x 2 pixels concatenated, of 8 x 8."""
TEST = 450


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's handwritten digits, split at random.

    Args:
        images: (N, 8, 8), from 0 to 1.
        labels: (N,).
        training: indices.
        test: indices.
    """

    images: Tensor
    labels: Tensor
    training: Tensor
    test: Tensor

    @classmethod
    def split(cls, seed: int, size: int | None = None) -> Digits:
        """A split; of the training images the first `size`, in an order of the seed's own."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32) / 16
        labels = torch.tensor(digits.target, dtype=torch.int64)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        return cls(images, labels, order[TEST:][:size], order[:TEST])


class Block(nn.Module):
    """Mixer and feed-forward, each after a layer normalisation and beside a skip."""

    def __init__(self, mixer: nn.Module, width: int) -> None:
        super().__init__()
        self.norm_1, self.mixer, self.norm_2 = nn.LayerNorm(width), mixer, nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """From (N, T, C) to the same."""
        x = x + self.mixer(self.norm_1(x))
        fed: Tensor = x + self.mlp(self.norm_2(x))
        return fed


class Network(nn.Module):
    """Patches, blocks, the mean over the tokens, and classes.

    Args:
        mixer: makes the mixer of each block.
        width: channels of a token.
        depth: blocks.
    """

    def __init__(self, mixer: Maker, width: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Block(mixer(width, SIDE), width) for _ in range(depth))
        self.norm, self.classes = nn.LayerNorm(width), nn.Linear(SIDE * SIDE * width, 10)

    def mixers(self) -> Iterator[nn.Module]:
        """The mixer of each block."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.mixer

    def embedded(self, images: Tensor) -> Tensor:
        """Tokens, (N, T, C)."""
        patches = images.reshape(-1, SIDE, 2, SIDE, 2).transpose(2, 3).flatten(3).flatten(1, 2)
        tokens: Tensor = self.embed(patches)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the classes, (N, 10)."""
        x = self.embedded(images)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.classes(self.norm(x).flatten(1))
        return scores


def accuracy(network: nn.Module, digits: Digits) -> float:
    """The share of the test images that are told right."""
    with torch.no_grad():
        told = network(digits.images[digits.test]).argmax(1)
    right: float = (told == digits.labels[digits.test]).double().mean().item()
    return right


def train(
    network: nn.Module,
    digits: Digits,
    epochs: int,
    *,
    rate: float = 4e-3,
    batch: int = 128,
    after: Callable[[int], bool] | None = None,
) -> None:
    """Train by AdamW, without weight decay on positions.

    Args:
        network: what is trained.
        digits: of which the training images are used.
        epochs: how often each is.
        rate: of learning.
        batch: images of a step.
        after: called after each epoch with its number from 1; the training ends if it says so.
    """
    of_positions = ("centres", "log_sharpness", "precision_root", "table", "places")
    groups: tuple[list[Tensor], list[Tensor]] = [], []
    for name, parameter in network.named_parameters():
        groups[name.rpartition(".")[2] in of_positions].append(parameter)
    optimiser = torch.optim.AdamW(
        [
            {"params": groups[0], "weight_decay": 0.01},
            {"params": groups[1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    for epoch in range(1, epochs + 1):
        order = digits.training[torch.randperm(len(digits.training))]
        for chosen in torch.split(order, batch):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(digits.images[chosen]), digits.labels[chosen])
            torch.autograd.backward(loss)
            optimiser.step()
        if after is not None and after(epoch):
            return
