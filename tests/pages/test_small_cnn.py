"""The page of the small CNN says what a run finds: equal predictions, bounds, certificates.

Evidence for T21. The page's numbers are those of one machine, since training is, and not compared;
its figure is drawn from such a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from constructions.demo.network import Digits
from tests.pages import small_cnn
from tests.pages.small_cnn import FIGURE, PAGE, Run, save_figure, trained
from tests.support.ledger import ROOT, record

bounded = pytest.mark.evidence("a_transformer_block_is_convolution_and_relu", "property")


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits.split(0)


@pytest.fixture(scope="module")
def network(digits: Digits) -> nn.Sequential:
    return trained(digits)


@bounded
@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 60), (torch.float64, 15)], ids=str)
def test_transformer_makes_the_predictions_of_the_cnn_within_its_bound(
    network: nn.Sequential, digits: Digits, dtype: torch.dtype, count: int
) -> None:
    run = Run.of(network, digits.test_images[:count], dtype)
    assert (run.cnn.argmax(1) == digits.test_labels[:count]).float().mean() > 0.9
    assert run.same.all()
    ratio = float((run.error / run.bounds).max())
    assert ratio <= 1
    record(ratio=ratio, dtype=dtype)
    # In float64 all decisions are certified; in float32 those that are not nearly ties.
    certified = run.certified
    assert certified.all() or dtype == torch.float32
    assert certified[run.margin > run.bounds.amax(1)].all()
    assert int(certified.sum()) > 0.9 * count
    assert run.same[certified].all()


@bounded
def test_exchanged_heads_make_other_predictions(network: nn.Sequential, digits: Digits) -> None:
    from constructions import stock

    images = digits.test_images[:20]
    encoder = stock.encoder(network, small_cnn.SHAPE)
    bound = encoder.bound(images)
    assert bound is not None
    module: Any = encoder.module
    attention = module.layers[1].self_attn
    with torch.no_grad():
        query = attention.in_proj_weight[: attention.embed_dim]
        query.copy_(query.unflatten(0, (attention.num_heads, -1)).roll(1, 0).flatten(0, 1))
        assert ((encoder(images) - network(images)).abs() > bound).any()


def test_page_has_its_figure_and_its_table(
    network: nn.Sequential, digits: Digits, tmp_path: Path
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert FIGURE.relative_to(ROOT / "docs").as_posix() in text
    assert small_cnn.TAIL in text
    place = tmp_path / "new" / "figure.png"
    save_figure(place, network, digits, count=10)
    assert place.stat().st_size > 10_000
