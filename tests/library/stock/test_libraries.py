"""What is said where a library does not load. No library is needed here."""

import importlib
from typing import Any

import pytest

import constructions
from constructions import stock
from constructions.stock.libraries import required


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Every import of timm raises."""
    original = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name.startswith("timm"):
            raise error
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_absent_library_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing(monkeypatch, ModuleNotFoundError("No module named 'timm'"))
    with pytest.raises(ImportError, match=r"timm\.models\.convit.*accepted: .*ecosystem"):
        required("timm.models.convit")


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "wrapped"])
def test_torchvision_that_does_not_load_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    error: Exception = RuntimeError("operator torchvision::nms does not exist")
    if wrapped:
        cause, error = error, RuntimeError("Failed to import a module of the library")
        error.__cause__ = cause
    refusing(monkeypatch, error)
    with pytest.raises(ImportError, match=r"torchvision::nms.*accepted: .*torch\.library\.Library"):
        required("timm.models.convit")


def test_another_failure_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, RuntimeError("no space left"))
    with pytest.raises(RuntimeError, match="no space left"):
        required("timm.models.convit")


def test_module_that_loads_is_returned() -> None:
    assert required("math") is importlib.import_module("math")


def test_every_function_is_there_under_its_name_without_its_library() -> None:
    assert constructions.stock is stock
    for name in stock.__all__:
        assert callable(getattr(stock, name))
        assert callable(getattr(stock, name)), "the submodule of the same name is not"


def test_unknown_function_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        getattr(stock, "gone")  # noqa: B009, the name is what is tested
