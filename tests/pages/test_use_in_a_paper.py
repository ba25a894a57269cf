"""The page for paper authors: its function is short, stands alone and is right for every case."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from constructions.formats import FORMATS
from tests.support.helpers import papers_layer
from tests.support.ledger import ROOT
from tests.support.strategies import CONVOLUTIONS, Geometry, geometries
from theory import theorems

PAGE = (ROOT / "docs" / "use-in-a-paper.md").read_text(encoding="utf-8")
SOURCE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]
SLUGS = [module.THEOREM.slug for module in theorems()]


def attention_weights() -> Callable[..., Tensor]:
    names: dict[str, Any] = {}
    exec(SOURCE, names)
    function: Callable[..., Tensor] = names["attention_weights"]
    return function


def test_function_has_at_most_40_lines_and_imports_torch_alone() -> None:
    module = ast.parse(SOURCE)
    imported, function = module.body
    assert isinstance(function, ast.FunctionDef)
    assert ast.unparse(imported) == "import torch"
    assert not [
        node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert function.end_lineno is not None
    assert function.end_lineno - function.lineno < 40


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("sharpness", [None, 0.3], ids=["saturated", "soft"])
@given(
    geometry=geometries(CONVOLUTIONS).filter(lambda g: not isinstance(g.options["padding"], str))
)
def test_function_has_the_weights_of_the_layer_bit_for_bit(
    dtype: torch.dtype, sharpness: float | None, geometry: Geometry
) -> None:
    conv: Any = geometry.build(dtype)
    layer = papers_layer(conv, sharpness=sharpness)
    spatial = geometry.shape[-len(conv.kernel_size) :]
    options = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    weights = attention_weights()(spatial, *options, layer.sharpness, dtype)
    assert weights.dtype == dtype
    assert torch.equal(weights, layer.attention_weights(spatial))


def test_saturation_that_the_function_tells_is_enough() -> None:
    layer = papers_layer(nn.Conv1d(1, 1, 1))
    told = {name: float(alpha) for alpha, name in re.findall(r"([\d.]+) \((\w+)\)", SOURCE)}
    for dtype in FORMATS:
        assert told[str(dtype).removeprefix("torch.")] >= layer.normaliser.one_hot_gap(dtype)


def test_table_has_every_parameter_of_the_layer() -> None:
    layer = papers_layer(nn.Conv2d(2, 2, 3), sharpness=1.0)
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == list(layer.state_dict())


def test_slugs_that_the_page_cites_are_the_theorems() -> None:
    assert re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE) == SLUGS
    for cited in re.findall(r"@misc\{(\w+),|\\texttt\{(\w+(?:\\_\w+)*)\} of", PAGE):
        assert "".join(cited).replace("\\", "") in SLUGS
