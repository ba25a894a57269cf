"""Libraries whose modules carry a convolution, imported when their function is first asked for."""

from __future__ import annotations

import importlib
from typing import Any

TORCHVISION = "torchvision::nms does not exist"
"""What the import of a torchvision that was built for CUDA says beside a torch for CPUs."""


def required(module: str) -> Any:
    """A module of another library.

    Raises:
        ImportError: the library is not installed, or does not load; the message has the remedy.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{module} is not there ({error}); accepted: an installed {package}, which the extra "
            "`ecosystem` brings: pip install -c constraints.txt -e '.[ecosystem]' in a clone"
        ) from error
    except (ImportError, RuntimeError) as error:
        if not says(error, TORCHVISION):
            raise
        raise ImportError(
            f"{module} imports torchvision, which does not load beside this torch ({TORCHVISION}); "
            "accepted: a torchvision of the same build as torch, as the index of torch's CPU "
            "wheels has it, or, before the first import of it, the schema of that operator: "
            "library = torch.library.Library('torchvision', 'DEF'); library.define('nms(Tensor "
            "dets, Tensor scores, float threshold) -> Tensor'); keep `library` alive"
        ) from error


def says(error: BaseException | None, text: str) -> bool:
    """Whether an exception, or one that it was raised from, has the text."""
    while error is not None:
        if text in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
