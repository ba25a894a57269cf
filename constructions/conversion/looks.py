"""A look at a network while it runs: the sizes that its poolings see, and functions it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from constructions.conversion.recognised import FUNCTIONS
from constructions.sources.poolings import ADAPTIVE


@dataclass
class Look:
    """What was seen.

    Args:
        sizes: id of an adaptive pooling to the spatial shapes that it was called with.
        calls: path of a module to the convolutions and poolings that it called, as functions or as
            the module that it is.
    """

    sizes: dict[int, set[tuple[int, ...]]] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)


def look_at(model: nn.Module, example: Any) -> Look:
    """Run a model once, in evaluation and without gradients, and leave it as it was.

    Args:
        model: any; what it keeps of its own accord while it runs, it keeps.
        example: its input; a tuple of them, or a mapping by name.
    """
    look, stack = Look(), [""]
    flags = {module: module.training for module in model.modules()}
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            continue
        before, after = _around(path, stack, look)
        handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    try:
        model.eval()
        with torch.no_grad(), _Calls(stack, look):
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, (tuple, list)) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in flags.items():
            module.training = training
    return look


def _around(path: str, stack: list[str], look: Look) -> tuple[Callable[..., None], ...]:
    """Hooks that say in which module the code is."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        stack.append(path)
        if isinstance(module, ADAPTIVE) and args and isinstance(args[0], Tensor):
            d = ADAPTIVE.index(next(kind for kind in ADAPTIVE if isinstance(module, kind))) + 1
            look.sizes.setdefault(id(module), set()).add(tuple(args[0].shape[-d:]))

    def after(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        stack.pop()

    return before, after


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down every convolution, with the module that asks for it."""

    def __init__(self, stack: list[str], look: Look) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack, self.look = stack, look

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name in FUNCTIONS:
            told = "an average pooling" if "pool" in name else "a convolution"
            if "conv" in name:
                told += f", weight {tuple(args[1].shape)},"
            calls = self.look.calls.setdefault(self.stack[-1], [])
            if told not in calls:
                calls.append(told)
        return func(*args, **(kwargs or {}))
