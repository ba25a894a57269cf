"""Layers and runtimes that people use, from the libraries that have them, unmodified."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import pytest
import torch

_declared: list[Any] = []  # operators live as long as the library that has them


@cache
def imported(module: str) -> Any:
    """A module of another library: timm and transformers import torchvision where it is installed.

    The torchvision of PyPI is built for CUDA. Beside a CPU torch its operators do not load, and its
    import ends where it describes two of them. Nothing here calls them: they are declared. The
    test is skipped where the package is not installed, and fails if `ECOSYSTEM` is "required".
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        absent = f"{package} is not installed; the extra `ecosystem` brings it"
        if os.environ.get("ECOSYSTEM") == "required":
            pytest.fail(absent)
        pytest.skip(absent)
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            library: Any = torch.library.Library
            _declared.append(library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                _declared[-1].define(
                    f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor"
                )
    return importlib.import_module(module)
