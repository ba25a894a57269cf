"""Traced code and the meta device: where the values of a tensor cannot be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def has_values(*tensors: Tensor, traced: bool = False) -> bool:
    """Whether tensors have values to look at: not in traced code, nor on meta, nor under vmap.

    For a check, or a choice, that is made from values where there are any, and left out, or taken
    from shapes, where there are none.

    Args:
        tensors: those whose values are wanted.
        traced: whether traced code will do, so that the meta device alone has none: for what
            computes with tensors and turns none into a number; and for what runs in a
            `constant_of_traced_code`, whose tensors have values though torch says that it is
            compiling, and must return what it returns elsewhere.
    """
    in_trace = is_traced()
    if in_trace and not traced:
        return False
    return not any(tensor.is_meta or (not in_trace and is_batched(tensor)) for tensor in tensors)


def is_batched(tensor: Tensor) -> bool:
    """Whether `torch.vmap` has put a batch in the place of one tensor, which has no one value."""
    wrappers = torch._C._functorch
    while wrappers.is_functorch_wrapped_tensor(tensor):
        if wrappers.is_batchedtensor(tensor):
            return True
        tensor = wrappers.get_unwrapped(tensor)
    return False


def members(tensor: Tensor) -> list[Tensor]:
    """The tensors of a batch that `torch.vmap` has put in the place of one; else the one."""
    wrappers = torch._C._functorch
    if not wrappers.is_functorch_wrapped_tensor(tensor):
        return [tensor]
    inner = wrappers.get_unwrapped(tensor)
    if wrappers.is_batchedtensor(tensor):
        batch = inner.unbind(wrappers.maybe_get_bdim(tensor))
        return [one for member in batch for one in members(member)]
    return members(inner)


def is_traced() -> bool:
    """Whether this code is being traced: by the compiler, for export or by `torch.jit.trace`."""
    return torch.compiler.is_compiling() or bool(torch._C._get_tracing_state())


def has_symbolic_sizes() -> bool:
    """Whether sizes may be symbols, as dynamo traces them, that no table can be keyed by."""
    return torch.compiler.is_dynamo_compiling()


def is_exported() -> bool:
    """Whether this code is being exported: what is traced then runs on sizes of any kind."""
    return torch.compiler.is_exporting()


def constant_of_traced_code(function: Function) -> Function:
    """Mark a function that traced code calls while it is traced, to keep its result as a constant.

    As `torch.compiler.assume_constant_result` does it, which would import the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def tensor_of(numbers: Sequence[int], like: Tensor) -> Tensor:
    """Integers as a tensor of a dtype and a device; in traced code they may be symbols."""
    if is_traced():
        return torch.cat([like.new_full((1,), n) for n in numbers])
    return like.new_tensor(numbers)


def largest(size: int) -> int | None:
    """The largest that a size of traced code can be, as its `Dim` says; None where none is known.

    Sizes are not compared, which would be a guard: what is known of them is asked for.
    """
    above = 1
    while not _is_known(size <= above):
        above *= 2
        if above > 2**40:
            return None
    below = above // 2
    while above - below > 1:
        middle = (above + below) // 2
        if _is_known(size <= middle):
            above = middle
        else:
            below = middle
    return above


def is_fixed(size: int) -> bool:
    """Whether a size of traced code is a number, the same in all its runs."""
    most = largest(size)
    return most is not None and _is_known(size >= most)


def _is_known(condition: bool) -> bool:
    """Whether a condition on sizes holds for all of them."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
