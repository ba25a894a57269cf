"""A small convolutional network, trained on scikit-learn's handwritten digits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

EPOCHS = 30
BATCH = 64


@dataclass(frozen=True)
class Digits:
    """1,797 images of 8 x 8 pixels from 0 to 1, a quarter of each class drawn for the test.

    Args:
        training_images: (N, 1, 8, 8), float32.
        training_labels: (N,), int64.
        test_images: as the training images.
        test_labels: as the training labels.
    """

    training_images: Tensor
    training_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def split(cls, seed: int) -> Digits:
        """Load the images, and split them."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target, dtype=torch.int64)
        parts = train_test_split(
            range(len(labels)), test_size=0.25, stratify=digits.target, random_state=seed
        )
        training, test = (torch.tensor(part) for part in parts)
        return cls(images[training], labels[training], images[test], labels[test])


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Draw the same random numbers and add in the same order, however many cores there are.

    One thread; on CUDA no TF32, with which cards of different kinds would differ. The random state
    and the number of threads are as before afterwards.
    """
    threads = torch.get_num_threads()
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=()), cudnn:
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def digit_network() -> nn.Sequential:
    """Four convolutions of four kinds, untrained, on (N, 1, 8, 8)."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(1, 16, 3, padding=1),
            relu_1=nn.ReLU(),
            strided=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            relu_2=nn.ReLU(),
            dilated=nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=4),
            relu_3=nn.ReLU(),
            even=nn.Conv2d(32, 32, 2),
            relu_4=nn.ReLU(),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(),
            classes=nn.Linear(32 * 3 * 3, 10),
        )
    )


def train(digits: Digits, progress: Callable[[int, float], object]) -> nn.Sequential:
    """Train a network, in float32 on the CPU.

    Args:
        digits: of which the training images are used.
        progress: called after every epoch, with its number from 1 and its mean loss.

    Returns:
        The network, in evaluation mode.
    """
    images, labels = digits.training_images, digits.training_labels
    network = digit_network()
    optimiser = torch.optim.Adam(network.parameters())
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=6e-3, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            optimiser.zero_grad()
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        progress(epoch, total / len(labels))
    return network.eval()
