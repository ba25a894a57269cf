"""Whole networks, certified: every attention layer on what it receives in its network.

Theorem: `certificates_compose_by_telescoping`, whose equations are the numbers in brackets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_map_only

from constructions.certificate.certificate import (
    Certificate,
    called,
    certificate_of,
    may_crash,
)
from constructions.certificate.equivalence import diagnosed
from constructions.certificate.propagation import end_to_end
from constructions.certificate.stacks import layers_in
from constructions.conversion import Following
from constructions.conversion.recognised import recognised
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.sources import SOURCES, AnySource

IMAGES_AT_A_TIME = 64
"""A dense layer keeps heads x queries x channels numbers for every image."""

ROOT = "(the network itself)"
"""How a table names the path of the network, which is empty."""

Progress = Callable[[str, Certificate], object]
"""Called after each layer, with its path and its certificate."""


@dataclass(frozen=True)
class NetworkCertificate:
    """What the layers of a converted network differ by, each on what it received, and the outputs.

    Tensors are float64, on the CPU, of the output's shape; where the network returns several
    tensors, one after another, flat.

    Args:
        layers: path to the certificate of the layer, in the order of the calls; a second call of a
            layer stands under its path and " (call 2)".
        left: path to the reason, for what is like a convolution and has no certificate.
        diagnoses: path to what is said of a layer whose certificate does not hold.
        difference: |converted - original|, as both were computed.
        estimate: the same to first order: what the original network, linearised, makes of the
            errors that the layers were observed to have. No bound. None where torch has no forward
            derivative of something in the network.
        end_to_end: a bound on `difference` made of the layers' bounds. For chains (`nn.Sequential`,
            nested or not) of convolutions, linear layers, ReLU, maximum poolings, Flatten, Dropout
            and Identity, in float32 or float64 on the CPU, where every certificate holds and
            nothing but these is left; else None.
    """

    layers: Mapping[str, Certificate]
    left: Mapping[str, str]
    diagnoses: Mapping[str, str]
    difference: Tensor
    estimate: Tensor | None
    end_to_end: Tensor | None

    @property
    def holds(self) -> bool:
        """Whether the certificate of every layer in `layers` holds; nothing is said of `left`."""
        return not self.failing

    @property
    def failing(self) -> tuple[str, ...]:
        """The paths of the layers whose certificates do not hold."""
        return tuple(path for path, certificate in self.layers.items() if not certificate.holds)

    def table(self) -> str:
        """A line for each layer, for what is left, and for the output; largest entries."""
        wide = max([len("layer"), *(len(path or ROOT) for path in (*self.layers, *self.left))])
        lines = [f"{'layer':{wide}}      error     bound      leak  rounding     ratio"]
        for path, certificate in self.layers.items():
            numbers = (
                *(certificate.error, certificate.bound),
                *(certificate.leak, certificate.rounding),
            )
            cells = "  ".join(f"{_largest(number):8.2e}" for number in numbers)
            fails = "" if certificate.holds else "  FAILS"
            lines.append(f"{path or ROOT:{wide}}   {cells}  {certificate.ratio:8.3g}{fails}")
            if path in self.diagnoses:
                lines += [f"{'':{wide}}   {line}" for line in self.diagnoses[path].splitlines()]
        lines += [f"{path or ROOT:{wide}}   left: {reason}" for path, reason in self.left.items()]
        lines.append(f"difference of the outputs, observed     {_largest(self.difference):8.2e}")
        estimate, bound = self.estimate, self.end_to_end
        if estimate is not None:
            lines.append(f"the same to first order, an estimate    {_largest(estimate):8.2e}")
        if bound is not None:
            lines.append(f"a bound on it, from the layers' bounds  {_largest(bound):8.2e}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        told = {"difference": self.difference, "estimate": self.estimate}
        told["end_to_end"] = self.end_to_end
        numbers = ", ".join(
            f"{name}={'None' if number is None else format(_largest(number), '.3g')}"
            for name, number in told.items()
        )
        return (
            f"NetworkCertificate(holds={self.holds}, layers={len(self.layers)}, "
            f"left={len(self.left)}, failing={list(self.failing)}, {numbers}; largest entries)"
        )


def _largest(numbers: Tensor) -> float:
    return float(numbers.max()) if numbers.numel() else 0.0


def certify_layers(
    converted: nn.Module, original: nn.Module, x: Any, *, progress: Progress | None = None
) -> NetworkCertificate:
    """Certify every attention layer of a converted network on what it really receives there.

    What a layer receives has the errors of the layers before it, and its certificate holds it
    against the exact convolution of just that. The difference of the outputs is the sum, over the
    calls, of what the rest of the original network makes of that layer's error (theorem
    `certificates_compose_by_telescoping`), whatever stands between: branches, shared modules,
    modules called twice.

    Both networks run once, in evaluation, and are left as they were. The same number must come out
    of the same call: nothing is to depend on chance, or to choose by numbers what is called.

    Args:
        converted: as `convert` makes it of the original, trained or edited since or not.
        original: the network with its convolutions.
        x: what both are called with: a tensor, a tuple of arguments or a mapping by name.
        progress: called after each layer with its path and certificate.

    Returns:
        The certificates, and what is known of the output.

    Raises:
        TypeError: a network is no module.
        ValueError: as `certify`, with the path, for x and its dtype; or the networks do not belong
            together: they return tensors of other shapes, or call a layer another number of times.
    """
    for name, module in (("converted", converted), ("original", original)):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} is a {type(module).__name__}; accepted: a torch.nn.Module")
    pairs, left = _pairs(converted, original)
    with torch.no_grad(), _in_evaluation(converted, original):
        ours, calls = _recorded(converted, pairs, x)
        layers: dict[str, Certificate] = {}
        diagnoses: dict[str, str] = {}
        for call in calls:
            try:
                certificate = _certificate_of(call)
            except ValueError as error:
                left[call.path] = str(error)
                continue
            layers[call.name] = certificate
            if not certificate.holds:
                diagnoses[call.name] = diagnosed(
                    call.pair.layer, call.pair.conv, call.x, call.output_size
                )
            if progress is not None:
                progress(call.name, certificate)
        seen = {call.path for call in calls}
        left |= {path: "not called on this input" for path in pairs if path not in seen}
        theirs = _flat(_run(original, x))
        if theirs.shape != ours.shape:
            raise ValueError(
                f"converted returns tensors of shape {tuple(ours.shape)}, original of "
                f"{tuple(theirs.shape)}; accepted: a network and what convert makes of it"
            )
        bound = None
        complete = not left and len(layers) == len(calls)
        if complete and isinstance(x, Tensor) and all(c.holds for c in layers.values()):
            bound = end_to_end(converted, original, x, list(layers.values()))
        return NetworkCertificate(
            layers=layers,
            left=left,
            diagnoses=diagnoses,
            difference=(ours - theirs).abs(),
            estimate=_estimate(original, pairs, calls, x),
            end_to_end=bound,
        )


# Which layer stands for which convolution ---------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """An attention layer and the convolution it stands for.

    Args:
        called: the attention layer in the network, whose calls are recorded, or layers in a
            sequence.
        layer: the same with the weight that it has now: where it follows a module, a copy.
        conv: what it is held against.
        source: the module of the original network.
    """

    called: MultiHeadSelfAttention | nn.Sequential
    layer: MultiHeadSelfAttention | nn.Sequential
    conv: AnySource
    source: nn.Module


def _pairs(converted: nn.Module, original: nn.Module) -> tuple[dict[str, _Pair], dict[str, str]]:
    """By path: the layers with what they stand for, and what is left with the reason."""
    pairs: dict[str, _Pair] = {}
    left: dict[str, str] = {}
    inner: set[int] = set()
    for path, module in converted.named_modules():
        if isinstance(module, Following):
            inner |= {id(part) for part in module.modules()}
        elif _is_stack(module, original, path):
            inner |= {id(layer) for layer in layers_in(module)}
        elif not isinstance(module, MultiHeadSelfAttention) or id(module) in inner:
            continue
        try:
            source = original.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f"original has no module {path!r}, where converted has an attention layer; "
                "accepted: a network and what convert makes of it"
            ) from error
        if isinstance(source, MultiHeadSelfAttention | Following):
            continue  # it was attention before
        try:
            if isinstance(module, Following):
                pairs[path] = _Pair(module.layer, module.current(), module.plain_of(source), source)
            else:
                assert isinstance(module, MultiHeadSelfAttention | nn.Sequential)
                pairs[path] = _Pair(module, module, recognised(source).plain, source)
        except TypeError as error:
            left[path] = str(error)
    replaced = {id(part) for pair in pairs.values() for part in pair.source.modules()}
    for path, module in original.named_modules():
        if isinstance(module, SOURCES) and id(module) not in replaced and path not in left:
            left[path] = f"is a {type(module).__name__} in both networks"
    return pairs, left


def _is_stack(module: nn.Module, original: nn.Module, path: str) -> bool:
    """Whether a module is layers, one after another, in the place of one of the original."""
    if not layers_in(module):
        return False
    try:
        return isinstance(original.get_submodule(path), SOURCES)
    except AttributeError:
        return False


# The networks, run --------------------------------------------------------------------------------


@dataclass
class _Call:
    """One call of a layer, in the order of the calls.

    Args:
        path: of the layer.
        number: of the call, from 1.
        pair: the layer.
        x: what it received.
        output_size: of a transposed convolution, where it was given.
        y: what it returned.
    """

    path: str
    number: int
    pair: _Pair
    x: Tensor
    output_size: Any
    y: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        """What it is listed under."""
        return self.path if self.number == 1 else f"{self.path} (call {self.number})"


def _run(network: nn.Module, x: Any) -> Any:
    x = tree_map_only(Tensor, torch.clone, x)  # a network may work on it in place
    if isinstance(x, Mapping):
        return network(**x)
    return network(*(x if isinstance(x, tuple | list) else (x,)))


def _flat(output: Any) -> Tensor:
    """The output in float64 on the CPU; several tensors one after another."""
    tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    wide = [leaf.detach().to("cpu", torch.float64) for leaf in tensors]
    return wide[0] if len(wide) == 1 else torch.cat([t.flatten() for t in wide] or [torch.empty(0)])


@contextmanager
def _in_evaluation(*networks: nn.Module) -> Iterator[None]:
    flags = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def _recorded(
    converted: nn.Module, pairs: Mapping[str, _Pair], x: Any
) -> tuple[Tensor, list[_Call]]:
    """The output, and each call of a layer."""
    calls: list[_Call] = []

    def before(path: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        image, *rest = *given, *([named["input"]] if "input" in named else [])
        output_size = rest[0] if rest else named.get("output_size")
        number = 1 + sum(call.path == path for call in calls)
        # A clone: what comes later may work in place.
        calls.append(_Call(path, number, pairs[path], image.clone(), output_size, image))

    def after(path: str, y: Tensor) -> None:
        call = next(call for call in reversed(calls) if call.path == path)
        call.y = y.clone()

    with ExitStack() as hooks:
        for path, pair in pairs.items():
            layer = pair.called
            handles = (
                layer.register_forward_pre_hook(
                    lambda _, given, named, path=path: before(path, given, named), with_kwargs=True
                ),
                layer.register_forward_hook(lambda _, __, y, path=path: after(path, y)),
            )
            for handle in handles:
                hooks.callback(handle.remove)
        output = _flat(_run(converted, x))
    return output, calls


def _certificate_of(call: _Call) -> Certificate:
    """Of a call, some images at a time."""
    layer, conv, size = call.pair.layer, call.pair.conv, call.output_size
    first = layer if isinstance(layer, MultiHeadSelfAttention) else layers_in(layer)[0]
    batched = call.x.dim() == first.geometry.dimension + 2
    images, outputs = (
        torch.split(t, IMAGES_AT_A_TIME) if batched and len(t) else (t,) for t in (call.x, call.y)
    )
    parts = [certificate_of(layer, conv, x, y, size) for x, y in zip(images, outputs, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return Certificate(
        error=torch.cat([part.error for part in parts]),
        leak=torch.cat([part.leak for part in parts]),
        rounding=torch.cat([part.rounding for part in parts]),
        conv_error=torch.cat([part.conv_error for part in parts]),
    )


def _estimate(
    original: nn.Module, pairs: Mapping[str, _Pair], calls: list[_Call], x: Any
) -> Tensor | None:
    """(7): the original network's derivative along the layers' errors; None where torch has none.

    Each layer's error is the difference of two computed numbers: what it returned, and what torch's
    convolution makes of what it received.
    """
    errors: dict[str, list[Tensor]] = {}
    for call in calls:
        if may_crash(call.pair.conv, call.x):
            return None
        try:
            theirs = called(call.pair.conv, call.x, call.output_size)
        except NotImplementedError:  # torch has no such pooling in half precision
            return None
        errors.setdefault(call.path, []).append(call.y - theirs)
    counts = dict.fromkeys(errors, 0)

    def moved(path: str, y: Tensor) -> Tensor:
        number = counts[path]
        counts[path] += 1
        if number >= len(errors[path]):
            raise _not_together(path)
        primal, tangent = forward_ad.unpack_dual(y)  # type: ignore[no-untyped-call]
        error = errors[path][number]
        total = error if tangent is None else tangent + error
        dual: Tensor = forward_ad.make_dual(primal, total)  # type: ignore[no-untyped-call]
        return dual

    with ExitStack() as hooks, forward_ad.dual_level():
        for path in errors:
            hook = pairs[path].source.register_forward_hook(
                lambda _, __, y, path=path: moved(path, y)
            )
            hooks.callback(hook.remove)
        try:
            # Fused attention has no forward derivative, its plain formula has.
            with sdpa_kernel(SDPBackend.MATH):
                output = _run(original, x)
        except (NotImplementedError, RuntimeError) as error:
            if "forward" in str(error):
                return None
            raise
        leaves = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
        tangents = []
        for leaf in leaves:
            _, tangent = forward_ad.unpack_dual(leaf)  # type: ignore[no-untyped-call]
            tangents.append(torch.zeros_like(leaf) if tangent is None else tangent.clone())
    for path, number in counts.items():
        if number != len(errors[path]):
            raise _not_together(path)
    return _flat(tangents).abs()


def _not_together(path: str) -> ValueError:
    return ValueError(
        f"{path or ROOT}: converted and original call it another number of times; accepted: a "
        "network and what convert makes of it"
    )
