"""The layer on several processes, by torch's own tools: heads, batches, weights or rows over ranks.

`on_ranks` runs jobs in processes of one gloo group; the other functions are the jobs and what they
are made of. The recipes of `docs/beyond-one-machine.md` are these.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.func import functional_call
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention

Job = Callable[[DeviceMesh], Any]

PATIENCE = timedelta(seconds=120)
"""A rank that waits longer for the others fails, so that a broken test ends."""

# Processes ----------------------------------------------------------------------------------------


def on_ranks(world_size: int, jobs: Sequence[Job]) -> list[list[Any]]:
    """What each job returns on each rank, from `world_size` processes that run all of them.

    Args:
        world_size: the number of processes.
        jobs: functions of a module, or partials of them, that take the mesh of all ranks.
    """
    # One process imports torch, and what DTensor would import at its first use; the ranks are its
    # forks (seen: 6 s for 10 s with both world sizes). It has itself never run an operation.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        torch.save(list(jobs), Path(folder, "jobs"))
        start_processes(  # type: ignore[no-untyped-call]
            _rank, (world_size, folder), world_size, start_method="forkserver"
        )
        results = [
            torch.load(Path(folder, f"results {rank}"), weights_only=False)
            for rank in range(world_size)
        ]
    return [list(of_job) for of_job in zip(*results, strict=True)]


def _rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    where = Path(folder, "store").as_uri()
    with _group(rank, world_size, where) as mesh:
        jobs = torch.load(Path(folder, "jobs"), weights_only=False)
        # Jobs may share a layer, and change it.
        results = [copy.deepcopy(job)(mesh) for job in jobs]
        torch.save(results, Path(folder, f"results {rank}"))


@contextmanager
def _group(rank: int, world_size: int, where: str) -> Iterator[DeviceMesh]:
    dist.init_process_group(
        "gloo", init_method=where, rank=rank, world_size=world_size, timeout=PATIENCE
    )
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        dist.destroy_process_group()


# Heads over ranks ---------------------------------------------------------------------------------


class ShardHeads(ParallelStyle):
    """Tensor parallelism: every rank has its heads, and one all-reduce adds up their outputs.

    No axis of a kernel is that of the heads, so that the layer stores W_val and W_out in its place.
    What belongs to a head is sharded on the axis of the heads, sharpness and bias are replicated. A
    rank runs the layer itself on its shards, which make a layer of fewer heads and no bias; the
    bias is added to the sum. Input and output are whole and plain, as for torch's own styles.
    """

    replicated = ("positional_sharpness", "bias")
    heads_last = ("value", "output")

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, MultiHeadSelfAttention)
        module.unfreeze("value", "output")
        # The layer's code without its tensors: it runs on those that it is lent.
        code = copy.deepcopy(module).to("meta")
        placements: dict[str, Placement] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            placements[name] = self.placement(name, tensor)
            distributed = distribute_tensor(tensor.detach(), device_mesh, [placements[name]])
            own: Tensor = distributed
            if isinstance(tensor, nn.Parameter):
                own = nn.Parameter(distributed, requires_grad=tensor.requires_grad)
            setattr(module, name, own)

        def part(x: Tensor, *tensors: Tensor) -> Tensor:
            lent = dict(zip(placements, tensors, strict=True))
            if "bias" in lent:
                lent["bias"] = self.bias_of_a_rank(lent["bias"])
            output: Tensor = functional_call(code, lent, (x,))
            return output

        # What every rank has whole gets a part of its gradient on every rank.
        gradients = [p if p.is_shard() else Partial() for p in placements.values()]
        parts = local_map(
            part,
            out_placements=[Partial()],
            in_placements=([Replicate()], *([p] for p in placements.values())),
            in_grad_placements=([Partial()], *([p] for p in gradients)),
            device_mesh=device_mesh,
        )

        def forward(x: Tensor) -> Tensor:
            image = DTensor.from_local(x, device_mesh, [Replicate()], run_check=False)
            summed = parts(image, *(getattr(module, name) for name in placements))
            y: Tensor = summed.redistribute(placements=[Replicate()]).to_local()
            if not isinstance(module.bias, DTensor):
                return y
            return y + module.bias.to_local().reshape(-1, *(1 for _ in module.geometry.before))

        module.forward = forward  # type: ignore[method-assign, assignment]
        return module

    def placement(self, name: str, tensor: Tensor) -> Placement:
        """Where a parameter or a buffer of the layer goes."""
        if name in self.replicated:
            return Replicate()
        return Shard(tensor.dim() - 1 if name in self.heads_last else 0)

    def bias_of_a_rank(self, bias: Tensor) -> Tensor:
        """Zero, which adds nothing."""
        return torch.zeros_like(bias)


class BiasOnEveryRank(ShardHeads):
    """A wrong style: every rank adds the bias to its part."""

    def bias_of_a_rank(self, bias: Tensor) -> Tensor:
        """The bias itself."""
        return bias


class LoseLastHeads(ShardHeads):
    """A wrong style: the last rank that has heads counts for nothing."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, MultiHeadSelfAttention)
        share = math.ceil(module.num_heads / device_mesh.size())
        kept = (math.ceil(module.num_heads / share) - 1) * share
        module.unfreeze("value", "output")
        with torch.no_grad():
            module.output[..., kept:] = 0
        return super()._apply(module, device_mesh)


def sharded_heads(
    mesh: DeviceMesh, *, model: nn.Module, x: Tensor, gradient: Tensor, style: ParallelStyle
) -> dict[str, Tensor]:
    """Output and gradients of a model whose attention layers are all sharded by heads.

    Args:
        mesh: of all ranks.
        model: an attention layer, or a network of them.
        x: the input, the same on every rank.
        gradient: of the output.
        style: how each layer is sharded.

    Returns:
        "y", the output; "x", its gradient; and that of every trained parameter by its name, whole.
    """
    paths = [p for p, m in model.named_modules() if isinstance(m, MultiHeadSelfAttention)]
    parallelize_module(model, mesh, style if paths == [""] else dict.fromkeys(paths, style))
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(gradient)
    assert x.grad is not None
    results = {"y": y.detach(), "x": x.grad}
    for name, parameter in model.named_parameters():
        if isinstance(parameter.grad, DTensor):
            results[name] = parameter.grad.full_tensor()
    return results


# Batches over ranks -------------------------------------------------------------------------------


def data_parallel(
    mesh: DeviceMesh, *, model: nn.Module, x: Tensor, gradient: Tensor, rate: float, steps: int
) -> dict[str, dict[str, Tensor]]:
    """Gradients of the first step, and parameters after the last one, under DDP.

    Args:
        mesh: of all ranks.
        model: any network.
        x: the whole batch, of which a rank takes its part.
        gradient: of the output for the whole batch.
        rate: of gradient descent.
        steps: how many.
    """
    rank, ranks = mesh.get_local_rank(), mesh.size()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(trained.values(), lr=rate)
    parallel = DistributedDataParallel(model)
    gradients: dict[str, Tensor] = {}
    for _ in range(steps):
        optimiser.zero_grad()
        parallel(x.chunk(ranks)[rank]).backward(gradient.chunk(ranks)[rank])
        if not gradients:
            gradients = {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
        optimiser.step()
    return {"gradients": gradients, "parameters": {n: p.detach() for n, p in trained.items()}}


# Parameters over ranks ----------------------------------------------------------------------------


def fully_sharded(
    mesh: DeviceMesh, *, model: nn.Module, x: Tensor, rate: float, steps: int
) -> dict[str, Tensor]:
    """Parameters, whole, after some steps under FSDP2, each layer sharded on its own.

    Every rank takes the whole batch, so that the average of the gradients is each rank's own, and
    the steps are those of one process.

    Args:
        mesh: of all ranks.
        model: a network with attention layers.
        x: the batch.
        rate: of gradient descent with momentum, on the mean square of the output.
        steps: how many.
    """
    for layer in model.modules():
        if isinstance(layer, MultiHeadSelfAttention) and list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    descend(model, x, rate, steps)
    whole = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        whole[name] = parameter.full_tensor().detach()
    return whole


def descend(model: nn.Module, x: Tensor, rate: float, steps: int) -> None:
    """Gradient descent with momentum, on the mean square of the output."""
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()


# Rows over ranks ----------------------------------------------------------------------------------


def band(layer: MultiHeadSelfAttention) -> int:
    """How far from its nearest key a row of P can have weights other than 0: (17) of T4."""
    if layer.is_saturated(layer.dtype):
        return 0
    gap = layer.normaliser.one_hot_gap(accumulator(layer.dtype))
    return math.isqrt(math.floor(gap / layer.sharpness))


def halo(layer: MultiHeadSelfAttention) -> tuple[int, int]:
    """Rows that the outputs of a stripe need above and below it: the kernel's reach and P's band.

    Above it is a multiple of the stride, so that the outputs of a stripe keep their places.
    """
    geometry = layer.geometry
    before, stride = geometry.before[0], geometry.query_spacing[0]
    after = (geometry.kernel_size[0] - 1) * geometry.dilation[0] - before
    above = math.ceil(max(0, before + band(layer)) / stride) * stride
    return above, max(0, after + band(layer))


def stripe_output(
    layer: MultiHeadSelfAttention, stripe: Tensor, above: int, rows: int | None
) -> Tensor:
    """The layer on a stripe with its halo, less the outputs of the halo.

    Args:
        layer: applied as it is; it takes the edges of the stripe for those of an image.
        stripe: (N, C, rows and halo, ...).
        above: rows of the halo above, a multiple of the stride.
        rows: that the stripe has of its own, a multiple of the stride; None for the last stripe,
            which has all outputs that follow.
    """
    stride = layer.geometry.query_spacing[0]
    y: Tensor = layer(stripe)[:, :, above // stride :]
    return y if rows is None else y[:, :, : rows // stride]


def with_halo(rows: Tensor, above: int, below: int, mesh: DeviceMesh) -> Tensor:
    """A rank's rows, between the last ones of the rank before and the first ones of the next."""
    if max(above, below) > rows.shape[2]:
        raise ValueError(
            f"rows has {rows.shape[2]}; accepted: at least {max(above, below)}, the halo, so that "
            "it is the neighbours' alone"
        )
    rank, last = mesh.get_local_rank(), mesh.size() - 1
    top, bottom = rows[:, :, :0], rows[:, :, :0]
    exchange = []

    def send(part: Tensor, to: int) -> None:
        exchange.append(dist.P2POp(dist.isend, part.contiguous(), to))

    def receive(count: int, source: int) -> Tensor:
        part = rows.new_empty(*rows.shape[:2], count, *rows.shape[3:])
        exchange.append(dist.P2POp(dist.irecv, part, source))
        return part

    if rank > 0 and below:
        send(rows[:, :, :below], rank - 1)
    if rank < last and above:
        send(rows[:, :, -above:], rank + 1)
    if rank > 0 and above:
        top = receive(above, rank - 1)
    if rank < last and below:
        bottom = receive(below, rank + 1)
    for work in dist.batch_isend_irecv(exchange) if exchange else ():
        work.wait()
    return torch.cat([top, rows, bottom], dim=2)


def sharded_rows(
    mesh: DeviceMesh, *, layer: MultiHeadSelfAttention, image: Tensor, missing: int = 0
) -> Tensor:
    """A rank's rows of the output, of an image sharded by rows.

    Args:
        mesh: of all ranks.
        layer: the same on every rank.
        image: (N, C, rows, ...), the rows a multiple of the ranks and a rank's of the stride.
        missing: rows that the halo is too small by, on both sides, to see it fail.
    """
    rank, last = mesh.get_local_rank(), mesh.size() - 1
    rows = distribute_tensor(image, mesh, [Shard(2)]).to_local()
    above, below = (max(0, width - missing) for width in halo(layer))
    stripe = with_halo(rows, above, below, mesh)
    with torch.no_grad():
        return stripe_output(
            layer, stripe, above if rank > 0 else 0, rows.shape[2] if rank < last else None
        )


def job(function: Callable[..., Any], **arguments: Any) -> Job:
    """A job, to be handed to `on_ranks`."""
    return partial(function, **arguments)
