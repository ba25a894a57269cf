"""A whole network: every convolution and average pooling in it replaced, and what is left told."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from constructions.conversion.construction import (
    attention_from_conv,
    check_options,
    expressed,
    trained_as,
)
from constructions.conversion.following import Following, Live, Recognised, Recogniser
from constructions.conversion.known import weight_hooks
from constructions.conversion.looks import Look, look_at
from constructions.conversion.recognised import (
    Handler,
    called_in_graph,
    closed,
    is_plain,
    recognised,
    recogniser_of,
)
from constructions.conversion.references import attributes, culprit, reached, rewire
from constructions.conversion.report import Report
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import POOLINGS, SOURCES, AnyConvolution, stencil_of
from constructions.sources.poolings import (
    ADAPTIVE,
    FIXED,
    AdaptivePooling,
    adaptive_windows,
    check_pooling,
    output_size_of,
)

Model = TypeVar("Model", bound=nn.Module)
Layer = MultiHeadSelfAttention | Following | nn.Sequential
Own = MultiHeadSelfAttention | nn.Sequential
"""What stands for a module that has its weight for a parameter: a layer, or several."""
REFUSALS = ("raise", "keep")
OF_CONVOLUTIONS = ("encoding", "boundary", "heads", "finite", "head_dim", "depth")
"""Options that a pooling, one uniform head with a boundary of its own, does not take."""


@overload
def convert(
    model: Model,
    *,
    on_refusal: str = ...,
    handlers: Mapping[Any, Handler] | None = ...,
    inplace: bool = ...,
    example: Any = ...,
    report: Literal[False] = ...,
    **options: Any,
) -> Model | Layer: ...


@overload
def convert(
    model: Model,
    *,
    on_refusal: str = ...,
    handlers: Mapping[Any, Handler] | None = ...,
    inplace: bool = ...,
    example: Any = ...,
    report: Literal[True],
    **options: Any,
) -> tuple[Model | Layer, Report]: ...


def convert(
    model: Model,
    *,
    on_refusal: str = "raise",
    handlers: Mapping[Any, Handler] | None = None,
    inplace: bool = False,
    example: Any = None,
    report: bool = False,
    **options: Any,
) -> Model | Layer | tuple[Model | Layer, Report]:
    """Replace every convolution and average pooling of a network by attention, in a copy of it.

    A module whose weight or padding is made in a way that is known (docs/networks.md has the list:
    weight normalisation, pruning and other parametrisations, standardised weights, the padding of
    TensorFlow, causal convolutions) becomes a `Following`: a layer that asks the module for them.

    Args:
        model: any module, a convolution itself included; left as it is. A convolution used in two
            places becomes one layer used in two places, and a weight or bias shared by two
            convolutions is shared by their layers. The layer of a pooling takes the dtype
            and the device of the model's first parameter.
        on_refusal: "raise", where a convolution computes in a way that is not known; or "keep": it
            stays what it is, and is told of.
        handlers: class of a module to a function that reads it: `f(module)` returns a convolution
            of torch's, or one and a function without arguments that returns its weight at each
            call. Asked once more for each copy of the module.
        inplace: convert the model itself, which is then returned, without a copy.
        example: an input, or a tuple of inputs, or a mapping by name. The model is run on it once,
            in evaluation, to find convolutions that are called as functions, and the sizes that
            its adaptive poolings see.
        report: whether to return what was replaced, and what was left and why, instead of a
            warning where something was left.
        options: as `attention_from_conv` takes them, for every convolution; the encoding, the
            boundary, the heads with their dimension, and the depth for convolutions alone.

    Returns:
        The copy, or the layer if the model is itself a convolution (with a depth above 1, an
        `nn.Sequential` of layers); with `report`, a pair of that and the report.

    Raises:
        TypeError: model is not a module, or cannot be copied, or an argument has the wrong type; or
            a convolution has a forward of its own or a hook, is lazy or complex, or shares its
            weight with one of another kind. The message names its path and the ways out.
        ValueError: as `attention_from_conv`, with the path; or an unknown on_refusal.
    """
    handled = _checked(model, on_refusal, handlers, inplace, report)
    if on_refusal == "keep":
        check_options(**options)  # no convolution is to be kept for an option that suits none
    look = Look() if example is None else look_at(model, example)
    conversion = Conversion(model, handled, inplace, look, options)
    conversion.run(keep=on_refusal == "keep")
    told = Report(conversion.replaced, conversion.left)
    result: Model | Layer = conversion.result
    if report:
        return result, told
    if told.left:
        warnings.warn(told.warning(), UserWarning, stacklevel=2)
    return result


class Conversion:
    """One run of `convert`.

    Args:
        model: the network.
        handlers: of the user.
        inplace: whether the network itself is changed.
        look: what was seen of it while it ran.
        options: of the layers.

    Attributes:
        result: the converted network.
        replaced: path to what was put there.
        left: path to why something was left.
    """

    result: Any

    def __init__(
        self,
        model: nn.Module,
        handlers: Mapping[Any, Handler],
        inplace: bool,
        look: Look,
        options: Mapping[str, Any],
    ) -> None:
        self.model, self.handlers, self.inplace, self.look = model, handlers, inplace, look
        self.options = options
        self.of_pooling = {n: o for n, o in options.items() if n not in OF_CONVOLUTIONS}
        self.like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.replaced: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.layers: dict[int, Layer] = {}  # by id of what they replace
        self.memo: dict[int, Any] = {}  # of deepcopy
        self._owners: dict[int, tuple[str, AnyConvolution]] = {}
        self._firsts: dict[int, Own] = {}
        self._biases: dict[int, nn.Parameter | None] = {}

    def run(self, keep: bool) -> None:
        """Make the layers, put them where they belong, and take down what is left."""
        if not self.inplace:
            self._forget_made_weights()
        for path, module in self._modules(self.model, "", set()):
            name = path or type(module).__name__
            try:
                layer = self._layer(path, name, module)
            except (TypeError, ValueError) as error:
                if not keep:
                    raise type(error)(f"{name}: {error}{_ways_out(error)}") from error
                self.left[path] = str(error)
                continue
            if layer is None:
                continue
            self.layers[id(module)] = self.memo[id(module)] = layer
            self.replaced[path] = _description(module, layer)
        hidden = dict(self._hidden())
        if self.inplace:
            self.result = self._in_place()
        else:
            self.result = self._copied()
        self.left |= hidden | dict(self._called())

    # The layers ---------------------------------------------------------------------------------

    def _modules(
        self, module: nn.Module, path: str, seen: set[int]
    ) -> Iterator[tuple[str, nn.Module]]:
        """What is to be replaced, with its path; what cannot be is taken down."""
        if id(module) in seen or isinstance(module, (Following, MultiHeadSelfAttention)):
            return
        seen.add(id(module))
        if recogniser_of(module, self.handlers) is not None:
            yield path, module
            return
        if (reason := closed(module)) is not None:
            self.left[path] = reason
        if isinstance(module, torch.jit.ScriptModule):
            return
        if (name := called_in_graph(module)) is not None:
            self.left[path] = f"its graph calls {name} as a function: convert before it is made"
        for name, child in module.named_children():
            yield from self._modules(child, f"{path}.{name}" if path else name, seen)

    def _layer(self, path: str, name: str, module: nn.Module) -> Layer | None:
        """The layer for a module; None where it is left."""
        recognise = recogniser_of(module, self.handlers)
        assert recognise is not None
        if isinstance(module, ADAPTIVE) and not self._is_handled(module):
            read = self._adaptive(path, module)
            if read is None:
                return None
            recognise = read
        elif not self._is_handled(module) and is_plain(module):
            return self._plain_layer(name, module)
        source = module if self.inplace else self._copy(module, name)
        found = recognise(source)
        if found.live is None:
            return self._plain_layer(name, found.plain.train(source.training))
        if (heads := self.options.get("heads", "taps")) != "taps":
            raise ValueError(
                f"heads is {heads!r} for a weight that is made anew at each call, or an image that "
                "is padded then; accepted: 'taps', since other heads serve one column space of taps"
            )
        layer = self._expressed(found)
        if isinstance(layer, nn.Sequential):
            raise ValueError(
                f"depth is {len(layer)}, and the module makes its weight or its padding anew at "
                "each call; accepted: depth=1, or a module whose weight is a plain parameter"
            )
        if found.live.weight is not None and self.options.get("head_dim") is not None:
            raise ValueError(
                f"head_dim is {self.options['head_dim']}, and the module makes its weight anew at "
                "each call; accepted: None, or a module whose weight is a plain parameter"
            )
        return Following(layer, source, recognise)

    def _is_handled(self, module: nn.Module) -> bool:
        return any(kind in self.handlers for kind in type(module).__mro__)

    def _expressed(self, found: Recognised) -> Own:
        if isinstance(found.plain, POOLINGS):
            stencil = stencil_of(found.plain).to(self.like.device, torch.float64)
            return trained_as(found.plain, expressed(stencil, **self.of_pooling))
        layer: Own = attention_from_conv(found.plain, **self.options)
        return layer

    def _plain_layer(self, name: str, module: Any) -> Own:
        layer = self._expressed(Recognised(module))
        if isinstance(module, POOLINGS):
            return layer
        first_name, first = self._owners.setdefault(id(module.weight), (name, module))
        if first is module:
            self._firsts[id(module)] = layer
        else:
            _share_matrices(self._firsts[id(first)], layer, first_name, name)
        if module.bias is not None:
            last = layers_of(layer)[-1]
            last.bias = self._biases.setdefault(id(module.bias), last.bias)
        return layer

    def _adaptive(self, path: str, pool: AdaptivePooling) -> Recogniser | None:
        """How an adaptive pooling is read, if it is one of windows that are alike."""
        check_pooling(pool)
        sizes = output_size_of(pool)
        if all(n in (1, None) for n in sizes):
            return recognised
        seen = self.look.sizes.get(id(pool), set())
        windows = {uniform_windows(sizes, shape) for shape in seen}
        only = windows.pop() if len(windows) == 1 else None
        if only is not None:
            return partial(_of_one_window, only)
        why = f"its windows on {', '.join(map(str, sorted(seen)))} are not all alike"
        self.left[path] = f"output_size {sizes}: " + (
            why if seen else "no example= was given on which it is called"
        )
        return None

    # The network --------------------------------------------------------------------------------

    def _forget_made_weights(self) -> None:
        """Let a copy take weights that hooks of torch make anew, without their history."""
        for module in self.model.modules():
            if weight_hooks(module):
                for value in vars(module).values():
                    if isinstance(value, Tensor) and not value.is_leaf:
                        self.memo[id(value)] = value.detach().clone()

    def _copy(self, module: nn.Module, name: str) -> Any:
        """A copy, with the layers in the places of what they replace.

        Raises:
            TypeError: something cannot be copied, with its path.
        """
        before = dict(self.memo)
        try:
            # deepcopy takes what the memo holds for the copy, wherever a module is referred to.
            return copy.deepcopy(module, self.memo)
        except Exception as error:
            path = culprit(module, before)
            where = ".".join(part for part in (name, path) if part)
            raise TypeError(
                f"{where}: model holds what copy.deepcopy cannot copy ({error}); accepted: a model "
                "that can be copied, or inplace=True, which converts it without a copy"
            ) from error

    def _copied(self) -> nn.Module:
        copied: nn.Module = self._copy(self.model, "")
        layers: dict[int, Layer] = {id(layer): layer for layer in self.layers.values()}
        rewire(copied, layers)
        for path in list(self.replaced):
            try:
                there: object = copied.get_submodule(path)
            except AttributeError:
                there = None
            if id(there) not in layers:
                del self.replaced[path]
                self.left[path] = "a module around it copies itself, and not by deepcopy's memo"
        return copied

    def _in_place(self) -> nn.Module:
        if id(self.model) in self.layers:
            return self.layers[id(self.model)]
        rewire(self.model, self.layers)
        return self.model

    # What is left -------------------------------------------------------------------------------

    def _hidden(self) -> Iterator[tuple[str, str]]:
        """Attributes from which convolutions are reached that are no registered submodules."""
        registered = {id(module) for module in self.model.modules()}
        for path, module in self.model.named_modules():
            if isinstance(module, (Following, MultiHeadSelfAttention, torch.jit.ScriptModule)):
                continue
            for attribute, value in attributes(module):
                where = f"{path}.{attribute}" if path else attribute
                for found, by_function in reached(value, False):
                    if by_function and self._is_kept_by_function(found):
                        yield where, "a function that holds convolutions of the original model"
                    elif id(found) not in registered and _holds_sources(found):
                        yield where, "holds a convolution that is no registered submodule"

    def _is_kept_by_function(self, found: nn.Module) -> bool:
        if self.inplace:  # what is around a replaced module is rewired; it itself is not
            return id(found) in self.layers
        return any(id(part) in self.layers for part in found.modules())

    def _called(self) -> Iterator[tuple[str, str]]:
        """What the example has called as functions."""
        told = [*self.replaced, *self.left]
        for path, calls in self.look.calls.items():
            around = [path, *(path[:i] for i, letter in enumerate(path) if letter == ".")]
            inside = any(part in told for part in around) or ("" in told)
            if not inside and not _is_ours(self.model, path):
                yield path, f"calls {' and '.join(calls)} as a function"


def _is_ours(model: nn.Module, path: str) -> bool:
    """Whether a path leads into a module of this package."""
    parts = path.split(".")
    modules = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]
    return any(type(module).__module__.startswith("constructions.") for module in modules)


def uniform_windows(
    sizes: tuple[int | None, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, int], ...] | None:
    """Window and stride of an adaptive pooling on each axis, or None where windows differ."""
    found = []
    for outputs, pixels in zip(sizes, shape, strict=True):
        axis = adaptive_windows(pixels, pixels if outputs is None else outputs)
        if axis is None:
            return None
        found.append(axis)
    return tuple(found)


def _of_one_window(windows: tuple[tuple[int, int], ...], pool: Any) -> Recognised:
    """The pooling that an adaptive one is on images where its windows are these."""
    kind = FIXED[len(windows) - 1]
    window, stride = zip(*windows, strict=True)

    def checked(x: Tensor) -> Tensor:
        shape = tuple(x.shape[-len(windows) :])
        if uniform_windows(output_size_of(pool), shape) != windows:
            raise ValueError(
                f"x has spatial shape {shape}; accepted: one of which {pool} has windows of "
                f"{window} at a stride of {stride}, as of the example= that it was converted with"
            )
        return x

    return Recognised(kind(window, stride), Live(pad=checked))


def layers_of(layer: Own) -> list[MultiHeadSelfAttention]:
    """The attention layers of what stands for a module, in order."""
    if isinstance(layer, MultiHeadSelfAttention):
        return [layer]
    return [part for part in layer if isinstance(part, MultiHeadSelfAttention)]


def _share_matrices(first: Own, second: Own, first_name: str, name: str) -> None:
    pairs = list(zip(layers_of(first), layers_of(second), strict=True))
    alike = all(torch.equal(one.numbers, other.numbers) for one, other in pairs)
    if len(pairs) > 1 and not alike:  # other paddings leave other taps at the query
        raise TypeError(
            f"shares its weight with {first_name}, whose layers look elsewhere; accepted: a weight "
            "of its own, or depth=1"
        )
    for one, other in pairs:
        _share_those_of(one, other, first_name, name)


def _share_those_of(
    first: MultiHeadSelfAttention,
    second: MultiHeadSelfAttention,
    first_name: str,
    name: str,
) -> None:
    names = [n for n in ("weight", "value", "output") if first._parameters.get(n) is not None]
    same_order = first.geometry.transposed == second.geometry.transposed
    if not same_order or any(
        getattr(first, name).shape != getattr(second, name).shape
        for name in names
        if second._parameters.get(name) is not None
    ):
        raise TypeError(
            f"shares its weight with {first_name}, a convolution of another kind; "
            "accepted: a weight of its own, or one shared by convolutions of one kind and groups"
        )
    for name in names:
        setattr(second, name, getattr(first, name))


def _checked(
    model: object,
    on_refusal: object,
    handlers: object,
    inplace: object,
    report: object,
) -> Mapping[Any, Handler]:
    """The handlers; raise unless every argument is of its kind."""
    if not isinstance(model, nn.Module):
        hint = ", such as its .module()" if isinstance(model, torch.export.ExportedProgram) else ""
        raise TypeError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module{hint}")
    for name, flag in (("inplace", inplace), ("report", report)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a {type(flag).__name__}; accepted: True or False")
    if on_refusal not in REFUSALS:
        kind = ValueError if isinstance(on_refusal, str) else TypeError
        raise kind(f"on_refusal is {on_refusal!r}; accepted: 'raise' or 'keep'")
    if handlers is None:
        return {}
    if not isinstance(handlers, Mapping):
        raise TypeError(
            f"handlers is a {type(handlers).__name__}; accepted: a mapping of classes to functions"
        )
    for key, handler in handlers.items():
        if not (isinstance(key, type) and issubclass(key, nn.Module) and callable(handler)):
            raise TypeError(
                f"handlers has {key!r}: {handler!r}; accepted: a class of modules and a function"
            )
    return handlers


def _ways_out(error: Exception) -> str:
    """What a user can do about a module that is refused."""
    if "inplace=True" in str(error):
        return ""
    return (
        "; or a function of yours in handlers= that says what it computes, or on_refusal='keep', "
        "which leaves it as it is"
    )


def _description(module: nn.Module, layer: Layer) -> str:
    """What stands where a module stood."""
    layers = [layer.layer] if isinstance(layer, Following) else layers_of(layer)
    heads = sum(part.num_heads for part in layers)
    told = f"{type(module).__name__} -> attention, {heads} heads"
    if len(layers) > 1:
        told += f" in {len(layers)} layers"
    return f"{told}, {layer.extra_repr()}" if isinstance(layer, Following) else told


def _holds_sources(module: nn.Module) -> bool:
    return any(isinstance(part, SOURCES) for part in module.modules())
