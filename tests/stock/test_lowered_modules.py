"""Attention of timm and transformers, unmodified, lowered through the tables of its scores.

T25, `docs/theorems/positional_heads_are_convolutions.md`. The truth is the definition in ball
arithmetic, from the module's parameters; the module itself runs in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from flint import arb
from torch import Tensor, nn

from constructions import lower
from constructions.certificate.rounding import gamma
from constructions.geometry.lattice import Lattice
from constructions.normalisers import EXP_ROUNDOFFS
from tests.support.helpers import integers, refused
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.theorems.test_positional_heads_are_convolutions import BITS, Score, definition, worst
from theory.tools.theta import precision

SLUG = "positional_heads_are_convolutions"
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")


@dataclass(frozen=True)
class Target:
    """A module with numbers, and how it is called.

    Args:
        module: of the library.
        grid: of its tokens.
        run: from an image to an image, in whatever format.
        scores: of each head.
        sinks: likewise.
        share: what each head is multiplied by.
        live: makes the content depend on the input.
        value: W_val and its bias, as a linear layer has them.
        output: the linear layer of the outputs.
        is_single: whether its softmax is in float32 always.
    """

    module: Any
    grid: tuple[int, ...]
    run: Callable[[Any, Tensor], Tensor]
    scores: Sequence[Score]
    sinks: Sequence[arb | None]
    share: Sequence[arb]
    live: Callable[[Any], None]
    value: Callable[[Any], tuple[Tensor, Tensor | None]]
    output: Callable[[Any], Any]
    is_single: bool = False


@contextmanager
def numbered(module: nn.Module) -> Iterator[None]:
    """Every parameter is a few bits, none like another."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(integers(*parameter.shape).roll(number) / 4)
        yield
    module.eval()


def tokens(image: Tensor) -> Tensor:
    return image.flatten(2).mT


def as_image(y: Tensor, image: Tensor) -> Tensor:
    return y.mT.reshape(image.shape)


def listed(entry: Callable[[int, int], Tensor], columns: int) -> list[Score]:
    """Scores by the number of a displacement in a window of so many rows and columns (3 x 2)."""

    def score(head: int, offset: Sequence[int]) -> arb:
        i, j = offset  # key minus query; the tables list query minus key
        return ball_of(entry((2 - i) * (2 * columns - 1) + (columns - 1 - j), head))

    return [partial(score, head) for head in range(2)]


def ball_of(number: Tensor) -> arb:
    return arb(float(number.detach()))


def swin() -> Target:
    module = imported("timm.models.swin_transformer").WindowAttention(4, 2, window_size=(3, 2))
    with numbered(module):
        module.qkv.weight[4:8] = 0
        table = module.relative_position_bias_table

    def live(module: Any) -> None:
        module.qkv.weight[5, 1] = 0.25

    return Target(
        module,
        (3, 2),
        lambda m, x: as_image(m(tokens(x)), x),
        listed(lambda number, head: table[number, head], 2),
        [None, None],
        [arb(1), arb(1)],
        live,
        lambda m: (m.qkv.weight[8:], m.qkv.bias[8:]),
        lambda m: m.proj,
    )


def beit() -> Target:
    module = imported("timm.models.beit").Attention(4, 2, qkv_bias=True, window_size=(3, 2))
    with numbered(module):
        module.qkv.weight[:4] = 0
        module.q_bias.zero_()
        module.v_bias.zero_()
        table = module.relative_position_bias_table

    def run(module: Any, x: Tensor) -> Tensor:
        with_class = torch.cat([torch.zeros_like(tokens(x)[:, :1]), tokens(x)], dim=1)
        return as_image(module(with_class)[:, 1:], x)

    def live(module: Any) -> None:
        module.q_bias[3] = 1.0

    return Target(
        module,
        (3, 2),
        run,
        listed(lambda number, head: table[number, head], 2),
        [ball_of(n) for n in table[-2]],
        [arb(1), arb(1)],
        live,
        lambda m: (m.qkv.weight[8:], None),
        lambda m: m.proj,
    )


def t5() -> Target:
    config = imported("transformers").T5Config(
        d_model=4, d_kv=2, num_heads=2, relative_attention_num_buckets=8, dropout_rate=0.0
    )
    attention = imported("transformers.models.t5.modeling_t5").T5Attention
    module = attention(config, has_relative_attention_bias=True)
    with numbered(module):
        module.k.weight.zero_()
        table = module.relative_attention_bias.weight

    def bucket(distance: int) -> int:
        # Eight buckets up to a distance of 128: two of each side alone, two that grow.
        far = abs(distance)
        at = far if far < 2 else min(3, 2 + int(math.log(far / 2) / math.log(64) * 2))
        return at + 4 * (distance > 0)

    def score(head: int, offset: Sequence[int]) -> arb:
        return ball_of(table[bucket(offset[0]), head])

    def live(module: Any) -> None:
        module.k.weight[0, 0] = 1.0

    return Target(
        module,
        (20,),
        lambda m, x: as_image(m(tokens(x))[0], x),
        [partial(score, head) for head in range(2)],
        [None, None],
        [arb(1), arb(1)],
        live,
        lambda m: (m.v.weight, None),
        lambda m: m.o,
    )


def gpsa() -> Target:
    module = imported("timm.models.convit").GPSA(4, 2, qkv_bias=True)
    with numbered(module):
        module.qk.weight[4:] = 0
        weight = module.pos_proj.weight

    def score(head: int, offset: Sequence[int]) -> arb:
        i, j = offset
        along = weight[head, 1] * i + weight[head, 0] * j
        return ball_of(along + weight[head, 2] * (i * i + j * j))  # a few bits each

    gates = [ball_of(g) for g in module.gating_param]
    share = [1 / (1 + (sign * g).exp()) for sign in (-1, 1) for g in gates]

    def live(module: Any) -> None:
        module.qk.weight[7, 0] = 1.0

    return Target(
        module,
        (3, 3),
        lambda m, x: as_image(m(tokens(x)), x),
        [*(partial(score, head) for head in range(2)), *(2 * [lambda _: arb(0)])],
        4 * [None],
        share,
        live,
        lambda m: (m.v.weight, m.v.bias),
        lambda m: m.proj,
    )


def of_causal(scores: Callable[[int, int], arb]) -> list[Score]:
    """Two heads' scores by the step from query to key; none of later keys."""

    def score(head: int, offset: Sequence[int]) -> arb:
        return arb("-inf") if offset[0] > 0 else scores(head, offset[0])

    return [partial(score, head) for head in range(2)]


def later(tokens: int) -> Tensor:
    """Which keys come after the query."""
    return torch.ones(tokens, tokens, dtype=torch.bool).triu(1)


def linear_bias(head: int, step: int) -> arb:
    """ALiBi of two heads: slopes 2^-4 and 2^-8, in BLOOM and in MPT."""
    return ball_of(torch.tensor(step / 2 ** (4 * head + 4)))


def bloom() -> Target:
    library = imported("transformers.models.bloom.modeling_bloom")
    config = imported("transformers").BloomConfig(hidden_size=4, n_head=2, hidden_dropout=0.0)
    module = library.BloomAttention(config, layer_idx=0)
    with numbered(module):  # of each head the query's, the key's and the value's rows
        module.query_key_value.weight.view(2, 3, 2, 4)[:, 1] = 0

    def run(module: Any, x: Tensor) -> Tensor:
        t = tokens(x)
        alibi = library.build_alibi_tensor(torch.ones(t.shape[:2]), 2, t.dtype)
        mask = later(t.shape[1]).to(t.dtype) * torch.finfo(t.dtype).min
        return as_image(module(t, torch.zeros_like(t), alibi, mask)[0], x)

    def live(module: Any) -> None:
        module.query_key_value.weight.view(2, 3, 2, 4)[1, 1, 0, 0] = 1.0

    def value(module: Any) -> tuple[Tensor, Tensor]:
        linear = module.query_key_value
        weight, bias = linear.weight.view(2, 3, 2, 4), linear.bias.view(2, 3, 2)
        return weight[:, 2].reshape(4, 4), bias[:, 2].flatten()

    return Target(
        module,
        (7,),
        run,
        of_causal(linear_bias),
        [None, None],
        [arb(1), arb(1)],
        live,
        value,
        lambda m: m.dense,
        is_single=True,
    )


def mpt() -> Target:
    library = imported("transformers.models.mpt.modeling_mpt")
    config = imported("transformers").MptConfig(d_model=4, n_heads=2, max_seq_len=9)
    module = library.MptAttention(config, layer_idx=0)
    with numbered(module):
        module.Wqkv.weight[:4] = 0

    def run(module: Any, x: Tensor) -> Tensor:
        t = tokens(x)
        alibi = library.build_mpt_alibi_tensor(2, module.max_seq_length)
        return as_image(module(t, alibi, None, later(t.shape[1]))[0], x)

    def live(module: Any) -> None:
        module.Wqkv.weight[3, 1] = 0.5

    return Target(
        module,
        (7,),
        run,
        of_causal(linear_bias),
        [None, None],
        [arb(1), arb(1)],
        live,
        lambda m: (m.Wqkv.weight[8:], None),
        lambda m: m.out_proj,
        is_single=True,
    )


def llama(causal: bool = True, shared: bool = True) -> Target:
    library = imported("transformers.models.llama.modeling_llama")
    config = library.LlamaConfig(
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=1 if shared else 2,
        head_dim=4,
        attention_bias=True,
    )
    config._attn_implementation = "eager"
    module = library.LlamaAttention(config, layer_idx=0)
    with numbered(module):
        module.q_proj.weight.zero_()
        module.k_proj.weight.zero_()
    module.is_causal = causal
    biases = [module.q_proj.bias.tolist(), module.k_proj.bias.tolist() * (2 if shared else 1)]
    rotary = library.LlamaRotaryEmbedding(config)

    def run(module: Any, x: Tensor) -> Tensor:
        t = tokens(x)
        table = rotary(t, torch.arange(t.shape[1]).unsqueeze(0))
        mask = later(t.shape[1]).to(t.dtype) * torch.finfo(t.dtype).min if causal else None
        return as_image(module(t, table, mask)[0], x)

    def score(head: int, step: int) -> arb:
        # Two pairs of channels, (0, 2) and (1, 3): the key turned by its steps from the query.
        query, key = (bias[4 * head : 4 * head + 4] for bias in biases)
        total: arb = arb(0)
        for pair, frequency in enumerate(rotary.inv_freq.tolist()):
            turn = arb(step) * arb(frequency)
            c, d = key[pair], key[pair + 2]
            total += query[pair] * (c * turn.cos() - d * turn.sin())
            total += query[pair + 2] * (d * turn.cos() + c * turn.sin())
        scaled: arb = total * arb(module.scaling)
        return scaled

    def live(module: Any) -> None:
        module.k_proj.weight[0, 0] = 1.0

    def value(module: Any) -> tuple[Tensor, Tensor]:
        linear, times = module.v_proj, 2 if shared else 1
        return linear.weight.repeat(times, 1), linear.bias.repeat(times)

    every = [partial(lambda head, offset: score(head, offset[0]), head) for head in range(2)]
    return Target(
        module,
        (7,),
        run,
        of_causal(score) if causal else every,
        [None, None],
        [arb(1), arb(1)],
        live,
        value,
        lambda m: m.o_proj,
        is_single=True,
    )


TARGETS: dict[str, Callable[[], Target]] = {
    "swin": swin,
    "beit": beit,
    "t5": t5,
    "gpsa": gpsa,
    "bloom": bloom,
    "mpt": mpt,
    "llama": llama,
    "llama, no mask": partial(llama, causal=False, shared=False),
}
every_target = pytest.mark.parametrize("name", TARGETS)
TABLES = ["swin", "beit", "t5", "gpsa"]
MASKED = ["bloom", "mpt", "llama"]


def truth_of(target: Target, x: Tensor) -> list[list[list[arb]]]:
    """The module's own function over the reals, by definition."""
    keys = Lattice.box(target.grid)
    weight, value_bias = target.value(target.module)
    out = target.output(target.module)
    heads = len(target.scores)
    value = weight.reshape(2, -1, 4).mT.repeat(heads // 2, 1, 1)
    output = out.weight.T.reshape(2, -1, 4).repeat(heads // 2, 1, 1)
    bias = torch.zeros(4) if out.bias is None else out.bias.double()
    if value_bias is not None:  # a few bits each
        bias = bias + value_bias.double() @ out.weight.double().T
    total: list[list[list[arb]]] | None = None
    for head in range(heads):
        part = definition(
            [target.scores[head]],
            [target.sinks[head]],
            value[head].reshape(1, 1, 4, -1),
            output[head].reshape(1, 1, -1, 4),
            None,
            keys,
            keys,
            x,
        )
        shared = [[[target.share[head] * y for y in ys] for ys in image] for image in part]
        if total is not None:
            shared = [
                [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(*both, strict=True)]
                for both in zip(total, shared, strict=True)
            ]
        total = shared
    assert total is not None
    constants = bias.tolist()
    return [[[y + arb(b) for y in ys] for ys, b in zip(c, constants, strict=True)] for c in total]


@bounded
@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_lowered_module_is_within_its_bound_of_the_definition(
    name: str, dtype: torch.dtype
) -> None:
    target = TARGETS[name]()
    x = integers(2, 4, *target.grid, dtype=dtype)
    lowered = lower(target.module.to(dtype), grid=target.grid)
    bound = lowered.error_bound(x)
    if name == "gpsa":  # gates are rounded into the values: once each, relatively
        moduli = copy.deepcopy(lowered)
        for number in (moduli.value, moduli.output):
            number.abs_()
        u = torch.finfo(dtype).eps / 2 + 2 * torch.finfo(torch.float64).eps
        bound = bound + 2 * u * moduli.double()(x.abs().double())
    with precision(BITS):
        ratio = worst(lowered(x), bound, truth_of(target, x), len(target.grid))
    record(ratio=ratio, device="cpu", dtype=dtype)
    assert ratio <= 1


@bounded
@every_target
@torch.no_grad()
def test_lowered_module_returns_what_the_module_does(name: str) -> None:
    target = TARGETS[name]()
    module = target.module.double()
    x = integers(2, 4, *target.grid, dtype=torch.float64)
    lowered = lower(module, grid=target.grid)
    # The module forms as many sums, of as many terms, in another order.
    allowed = 2 * lowered.error_bound(x)
    if target.is_single:
        allowed = allowed + of_single_softmax(lowered, module)(x.abs())
    assert ((lowered(x) - target.run(module, x)).abs() <= allowed).all()
    assert lowered.cost(target.grid).total > 0


def of_single_softmax(lowered: Any, module: Any) -> Callable[[Tensor], Tensor]:
    """What a softmax in float32 may change of the outputs, to first order, of the pixels' moduli.

    A weight errs by twice what its score may, and by what `head_rounding` has for the exponential,
    the sum and the quotient. Scores of ALiBi are a few bits. Those of rotations are products of
    queries and keys with cosines in float32, at angles of up to T: (T + 8) u times their moduli.
    """
    moduli = copy.deepcopy(lowered)
    for number in (moduli.value, moduli.output):
        number.abs_()
    if moduli.bias is not None:
        moduli.bias.abs_()
    count, u = 7, torch.finfo(torch.float32).eps / 2
    relative = gamma(count + EXP_ROUNDOFFS + 3, torch.float32)
    if "Llama" in type(module).__name__:
        moduli_of_keys = module.k_proj.bias.abs().sum()
        relative += 2 * (count + 8) * u * float(module.q_proj.bias.abs().sum() * moduli_of_keys)
    return lambda x: 2 * relative * moduli(x)


@control
@pytest.mark.parametrize("name", TABLES)
@torch.no_grad()
def test_table_of_another_head_is_no_lowering(name: str) -> None:
    target = TARGETS[name]()
    module = target.module.double()
    x = integers(2, 4, *target.grid, dtype=torch.float64)
    lowered = lower(module, grid=target.grid)
    tables = [p for n, p in module.named_parameters() if "relative" in n or "pos_proj.weight" in n]
    for table in tables:
        table.copy_(table.roll(1, 0))
    assert ((lowered(x) - target.run(module, x)).abs() > 2 * lowered.error_bound(x)).any()


@control
@pytest.mark.parametrize("name", MASKED)
@torch.no_grad()
def test_mask_is_a_part_of_the_lowering(name: str) -> None:
    # Later tokens change nothing, bit for bit; without a mask, or with the wrong one, they would.
    target = TARGETS[name]()
    module = target.module.double()
    lowered = lower(module, grid=target.grid)
    x = integers(1, 4, 7, dtype=torch.float64)
    other = x.clone()
    other[..., 4:] += 1
    assert torch.equal(lowered(x)[..., :4], lowered(other)[..., :4])
    assert (lowered(x)[..., 4:] != lowered(other)[..., 4:]).any()
    backwards = target.run(module, x.flip(-1)).flip(-1)
    allowed = 2 * lowered.error_bound(x) + of_single_softmax(lowered, module)(x.abs())
    assert ((lowered(x) - backwards).abs() > allowed).any()
    assert (lowered(x[..., :3]) == lower(module, grid=(3,))(x[..., :3])).all()


def test_what_is_no_linear_map_of_the_pixels_or_no_table_is_refused() -> None:
    clipped = mpt().module
    clipped.clip_qkv = 2.0
    with refused(ValueError, "layer", "clip_qkv 2.0", "None"):
        lower(clipped, grid=(4,))
    scaled = llama().module
    scaled.config.rope_parameters["rope_type"] = "yarn"
    with refused(ValueError, "layer", "'yarn'", "'default'"):
        lower(scaled, grid=(4,))
    for make in (bloom, mpt, llama):
        with refused(ValueError, "grid", "None", "(T,)"):
            lower(make().module)
    for number in (math.inf, math.nan):
        table = swin().module
        with torch.no_grad():
            table.relative_position_bias_table[3, 0] = number
        with refused(ValueError, "layer", "not finite functions", "-inf where a mask is"):
            lower(table)
    middle = swin().module
    with torch.no_grad():
        middle.relative_position_bias_table[7, 0] = -math.inf
    with refused(ValueError, "layer", "not finite functions", "not at the query itself"):
        lower(middle)


@torch.no_grad()
def test_bloom_that_adds_in_slices_has_no_bias() -> None:
    target = bloom()
    module = target.module.double()
    module.pretraining_tp, module.slow_but_exact = 2, True
    x = integers(2, 4, 7, dtype=torch.float64)
    lowered = lower(module, grid=(7,))
    allowed = 2 * lowered.error_bound(x) + of_single_softmax(lowered, module)(x.abs())
    assert ((lowered(x) - target.run(module, x)).abs() <= allowed).all()


@every_target
def test_live_content_is_refused(name: str) -> None:
    target = TARGETS[name]()
    with torch.no_grad():
        target.live(target.module)
    with refused(ValueError, "layer", "live content", "positional scores alone"):
        lower(target.module, grid=target.grid)


def test_grids_that_a_module_has_not_are_refused() -> None:
    with refused(ValueError, "grid", "(4, 2)", "None or (3, 2)"):
        lower(swin().module, grid=(4, 2))
    with refused(ValueError, "grid", "None", "(T,)"):
        lower(t5().module)
    with refused(ValueError, "grid", "(3, 2)", "(n, n)"):
        lower(gpsa().module, grid=(3, 2))
    with refused(TypeError, "grid", "3", "a tuple of integers"):
        lower(gpsa().module, grid=3)  # type: ignore[arg-type]
    with refused(ValueError, "grid", "(0,)", "1 pixel or more"):
        lower(t5().module, grid=(0,))
    lowered = lower(swin().module)
    with torch.no_grad():
        assert lowered(torch.ones(1, 4, 2, 2)).shape == (1, 4, 2, 2)
    with refused(ValueError, "x asks for", "(-3, -1)", "the grid that it was lowered for"):
        lowered(torch.ones(1, 4, 4, 2))


def test_bias_of_the_values_in_beit_is_refused() -> None:
    module = beit().module
    with torch.no_grad():
        module.v_bias.fill_(1.0)
    with refused(ValueError, "layer", "bias of the values", "a sink"):
        lower(module)


@torch.no_grad()
def test_lowered_module_is_exported() -> None:
    lowered, x = lower(swin().module), integers(2, 4, 3, 2)
    exported = torch.export.export(lowered, (x,)).module()
    assert torch.equal(exported(x), lowered(x))
