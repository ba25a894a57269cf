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

from constructions import attention_from_conv
from constructions.formats import FORMATS
from constructions.layer.parameters import PARTS
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


def rows(page: str, columns: int) -> list[list[str]]:
    """The rows of all tables of so many columns whose first entry is code, without backquotes."""
    found = re.findall(r"^\| (`.+) \|$", page, re.MULTILINE)
    cut = [[cell.strip() for cell in row.replace("`", "").split("|")] for row in found]
    return [row for row in cut if len(row) == columns]


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 2), (2, 2), (2, 3)])
def test_table_says_what_the_layer_stores_and_how(inputs: int, outputs: int) -> None:
    layer = attention_from_conv(nn.Conv2d(inputs, outputs, 3), sharpness=1.0)
    stored = {name: kind for name, *_, kind in rows(PAGE, 5)}
    parameters = [name for name, kind in stored.items() if kind == "parameter"]
    buffers = [name for name, kind in stored.items() if kind.startswith("buffer")]
    saved = [name for name, kind in stored.items() if kind.endswith("state_dict")]
    assert parameters == [name for name, _ in layer.named_parameters()]
    assert set(buffers) == {name for name, _ in layer.named_buffers()}
    assert set(layer.state_dict()) == {*parameters, *saved}
    assert [name for name, kind in stored.items() if kind == "None"] == list(PARTS["content"])
    assert all(getattr(layer, name) is None for name in PARTS["content"])
    views = [name for name, kind in stored.items() if "view of weight" in kind]
    assert views == ["value", "output"]
    view, none = views if outputs <= inputs else reversed(views)
    assert getattr(layer, none) is None
    assert getattr(layer, view)._base is layer.weight
    assert list(stored) == [*parameters, *saved, *buffers[len(saved) :], *PARTS["content"], *views]


def test_table_says_what_each_part_makes_of_the_layer() -> None:
    told = {part.strip('"'): row for part, *row in rows(PAGE, 4)}
    assert told.keys() == PARTS.keys()
    for part, (names, _, evaluation) in told.items():
        layer = attention_from_conv(nn.Conv2d(2, 3, 3), sharpness=1.0)
        before = {name for name, _ in layer.named_parameters()}
        layer.unfreeze(part)
        made = {name for name, _ in layer.named_parameters()} - before
        assert made == set(names.split(", ")), part
        assert made <= layer.state_dict().keys()
        assert layer.evaluation == evaluation


def test_slugs_that_the_page_cites_are_the_theorems() -> None:
    assert re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE) == SLUGS
    for cited in re.findall(r"@misc\{(\w+),|\\texttt\{(\w+(?:\\_\w+)*)\} of", PAGE):
        assert "".join(cited).replace("\\", "") in SLUGS
