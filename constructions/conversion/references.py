"""References: what the plain attributes of a network's modules lead to.

A module is not only where it is registered. Lists, dictionaries, bound methods and functions may
hold it too; and some attributes cannot be copied.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """The plain attributes of a module: no parameters, buffers, submodules or hooks."""
    return [(name, value) for name, value in vars(module).items() if name not in OF_TORCH]


def reached(value: Any, by_function: bool) -> Iterator[tuple[nn.Module, bool]]:
    """The modules that a plain attribute holds, and whether it does so in a function."""
    if isinstance(value, nn.Module):
        yield value, by_function
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from reached(part, by_function)
    elif isinstance(value, dict):
        for part in value.values():
            yield from reached(part, by_function)
    elif isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not yet filled
                continue
            if isinstance(content, nn.Module):
                yield content, True
        for default in value.__defaults__ or ():
            if isinstance(default, nn.Module):
                yield default, True


def rewire(model: nn.Module, layers: Mapping[int, nn.Module]) -> None:
    """Put layers where the modules of these ids are, or their methods are kept."""

    def new(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return layers.get(id(value), value)
        if isinstance(value, types.MethodType) and value.__name__ in ("forward", "__call__"):
            layer = layers.get(id(value.__self__))
            return value if layer is None else getattr(layer, value.__name__)
        if type(value) in (list, tuple):
            parts = [new(part) for part in value]
            if all(a is b for a, b in zip(parts, value, strict=True)):
                return value
            if type(value) is tuple:
                return tuple(parts)
            value[:] = parts
        elif type(value) is dict:
            value.update({key: new(part) for key, part in value.items()})
        return value

    done = {id(part) for layer in layers.values() for part in layer.modules()}
    for module in [part for part in model.modules() if id(part) not in done]:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in module._modules.items():
            module._modules[name] = None if child is None else new(child)
        for name, value in attributes(module):
            if (put := new(value)) is not value:
                vars(module)[name] = put


def culprit(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """The path of what deepcopy cannot copy: of the innermost module, with the attribute."""
    for path, module in reversed(list(model.named_modules())):
        for name, value in [*attributes(module), *module._buffers.items()]:
            if isinstance(value, nn.Module):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                return ".".join(part for part in (path, name) if part)
    return ""
