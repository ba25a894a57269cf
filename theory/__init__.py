"""The evidence: one module per theorem, each with its statement and a proof that runs.

`python -m theory` runs every proof. Nothing here imports torch, `constructions` or the tests.
"""

import importlib
import pkgutil
from types import ModuleType

__all__ = ["theorems"]


def theorems() -> tuple[ModuleType, ...]:
    """Every module of this package that states a THEOREM, in the order of the catalogue."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    stated = [module for module in modules if hasattr(module, "THEOREM")]
    return tuple(sorted(stated, key=lambda module: int(module.THEOREM.number.removeprefix("T"))))
