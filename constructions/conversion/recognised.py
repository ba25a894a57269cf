"""Modules by others that compute a plain convolution, of a weight or a padding of their own.

Each is told by a handler of the user's, by what torch has done to it (a parametrisation, a hook
that makes its weight), and by the name of the class whose `forward` it runs. And modules that
nobody can look into are told from the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from constructions.conversion.following import Live, Recognised, Recogniser
from constructions.conversion.known import (
    WEIGHT_HOOKS,
    as_its_base,
    in_evaluation,
    known_of,
    makes_its_weight,
    plain_like,
)
from constructions.sources import CONVOLUTIONS, SOURCES
from constructions.sources.convolutions import (
    check_forward,
    check_hooks,
    check_kind,
)

Handler = Callable[[Any], Any]


def recogniser_of(module: nn.Module, handlers: Mapping[Any, Handler]) -> Recogniser | None:
    """How a module is read: by the user's handler, or as what it is known to be; None if by none.

    Args:
        module: any.
        handlers: of the user, by class; the nearest of a module's classes counts.
    """
    for kind in type(module).__mro__:
        if kind in handlers:
            return partial(_handled, handlers[kind], kind.__name__)
    return recognised if isinstance(module, SOURCES) else None


def recognised(module: nn.Module) -> Recognised:
    """What a convolution or a pooling computes.

    Raises:
        TypeError: it computes in a way that is not known.
        ValueError: it is of a format that a layer has not.
    """
    known = known_of(module)
    if is_plain(module):
        assert isinstance(module, SOURCES)
        return Recognised(module)
    if isinstance(module, CONVOLUTIONS):
        check_kind(module)
        check_hooks(module, WEIGHT_HOOKS)
        if known is None:
            check_forward(module)
            known = as_its_base
        with in_evaluation(module):
            return known(module)
    assert known is not None  # a pooling of others
    check_hooks(module)
    return known(module)


def is_plain(module: nn.Module) -> bool:
    """Whether a convolution or a pooling is to be read as what its class in torch computes."""
    return isinstance(module, SOURCES) and not makes_its_weight(module) and known_of(module) is None


def _handled(handler: Handler, name: str, module: nn.Module) -> Recognised:
    """What a handler of the user's says of a module."""
    answer = handler(module)
    plain, weight = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(plain, SOURCES) or not (weight is None or callable(weight)):
        raise TypeError(
            f"handlers[{name}] returned {answer!r}; accepted: an nn.Conv, or a pair of one and "
            "of a function without arguments that returns its weight"
        )
    if weight is None:
        return Recognised(plain)
    if not isinstance(plain, CONVOLUTIONS):
        raise TypeError(
            f"handlers[{name}] returned a weight for {plain!r}; accepted: for a convolution"
        )
    made = weight()
    if not isinstance(made, Tensor):
        raise TypeError(
            f"handlers[{name}] has a weight that is a {type(made).__name__}; accepted: a Tensor"
        )
    if made.shape != plain.weight.shape:
        raise ValueError(
            f"handlers[{name}] has a weight of shape {tuple(made.shape)}; accepted: "
            f"{tuple(plain.weight.shape)}, as its convolution's"
        )
    # Read anew, since the handler may have put anything there.
    plain = plain_like(plain, made, plain.bias, plain.padding, plain.padding_mode)
    owned = [n for n, p in module.named_parameters() if p is plain.bias]
    bias = partial(module.get_parameter, owned[0]) if owned else None
    return Recognised(plain, Live(weight, bias))


# What nobody can look into ---------------------------------------------------------------------

FUNCTIONS = frozenset(
    f"{kind}{d}d"
    for kind in ("conv", "conv_transpose", "avg_pool", "_adaptive_avg_pool")
    for d in (1, 2, 3)
) | {"convolution", "_convolution"}
"""Operators of torch that are convolutions or average poolings."""


def closed(module: nn.Module) -> str | None:
    """Why the convolutions of a module, if it has some, cannot be replaced; None if they can.

    Its children are its own: none of them is looked at.
    """
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        kinds = {source.__name__ for source in SOURCES}
        found = any(str(part.original_name) in kinds for part in module.modules())
        if found or FUNCTIONS & set(re.findall(r"aten::(\w+)", _graph_of(module))):
            return "scripted or traced: convert the model before torch.jit"
        return None
    quantised = kind.__module__.startswith(("torch.ao.nn.", "torch.nn.quantized"))
    if quantised and not isinstance(module, SOURCES) and "Conv" in kind.__name__:
        return "quantised: convert the model before it is quantised"
    return None


def _graph_of(module: torch.jit.ScriptModule) -> str:
    try:
        return str(module.inlined_graph)
    except (AttributeError, RuntimeError):  # it has no forward
        return ""


def called_in_graph(module: nn.Module) -> str | None:
    """The first convolution or pooling that a module's own graph calls as a function, if any.

    A module that torch.export, or symbolic tracing, has made of functions has nothing to replace.
    """
    graph = module.graph if isinstance(module, torch.fx.GraphModule) else vars(module).get("graph")
    if not isinstance(graph, torch.fx.Graph):
        return None
    for node in graph.nodes:
        name = str(node.target if isinstance(node.target, str) else _name(node.target))
        if node.op in ("call_function", "call_method") and name in FUNCTIONS:
            return name
    return None


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(target.__name__) if hasattr(target, "__name__") else str(target)
