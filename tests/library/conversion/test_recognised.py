"""What a module is read as: by a handler, by what is known, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from constructions.conversion.following import Recognised
from constructions.conversion.recognised import (
    called_in_graph,
    closed,
    recognised,
    recogniser_of,
)


class Heir(nn.Conv1d):
    """A convolution under another name."""


def test_nearest_class_of_a_module_counts() -> None:
    conv = Heir(1, 1, 3)
    of_base, of_heir = nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3)
    handlers = {nn.Conv1d: lambda _: of_base, Heir: lambda _: of_heir}
    read = recogniser_of(conv, handlers)
    assert read is not None
    assert read(conv) == Recognised(of_heir)
    read = recogniser_of(nn.Conv1d(1, 1, 1), handlers)
    assert read is not None
    assert read(conv) == Recognised(of_base)


@pytest.mark.parametrize("module", [nn.Conv3d(1, 1, 1), nn.AvgPool1d(2), Heir(1, 1, 1)], ids=str)
def test_plain_module_is_read_as_itself(module: nn.Module) -> None:
    read = recogniser_of(module, {})
    assert read is recognised
    assert recognised(module) == Recognised(module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "module", [nn.Linear(1, 1), nn.MaxPool2d(2), nn.BatchNorm2d(1), nn.Unfold(2), nn.Sequential()]
)
def test_what_is_no_convolution_is_not_read_and_not_closed(module: nn.Module) -> None:
    assert recogniser_of(module, {}) is None
    assert closed(module) is None
    assert called_in_graph(module) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module_without_a_convolution_is_not_closed() -> None:
    assert closed(torch.jit.script(nn.Linear(1, 1))) is None
    assert closed(torch.jit.script(nn.Sequential(nn.Conv1d(1, 1, 1)))) is not None


def test_graph_that_calls_the_module_is_open() -> None:
    class Function(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool1d(x, 2)

    assert called_in_graph(torch.fx.symbolic_trace(nn.Sequential(nn.Conv1d(1, 1, 1)))) is None
    assert called_in_graph(torch.fx.symbolic_trace(Function())) == "avg_pool1d"
