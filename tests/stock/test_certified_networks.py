"""Networks of other libraries, certified layer by layer on what their layers receive."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from constructions import certify_layers, convert
from tests.support.libraries import imported

NETWORKS = {"resnet10t": 18, "mobilenetv3_small_050": 54, "convnext_atto": 41}
"""Of timm, with branches, squeeze and excitation, or depthwise kernels; and their layers."""


def network(name: str) -> Any:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return imported("timm").create_model(name, pretrained=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_network_of_timm_is_certified(name: str) -> None:
    original = network(name)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    certificate = certify_layers(convert(original), original, x)
    assert certificate.holds, certificate.table()
    assert not certificate.left
    assert all(layer.bound.isfinite().all() for layer in certificate.layers.values())
    assert certificate.estimate is not None
    assert len(certificate.layers) == NETWORKS[name]


def test_swapped_head_in_a_network_of_timm_is_found_and_named() -> None:
    original = network("resnet10t")
    attention: Any = convert(original)
    shifts = attention.layer2[0].conv1.positional_shift
    shifts[[3, 5]] = shifts[[5, 3]]
    certificate = certify_layers(attention, original, torch.rand(1, 3, 32, 32))
    assert certificate.failing == ("layer2.0.conv1",)
    assert "heads 3 and 5 swapped" in certificate.diagnoses["layer2.0.conv1"]
