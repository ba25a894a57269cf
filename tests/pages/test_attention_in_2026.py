"""The page of attention as it is built in 2026: each constant, on the class that has it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from flint import fmpq, fmpq_mat, fmpz_mat
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.pages.attention_in_2026 import (
    AXES,
    ONE_HOT,
    PAGE,
    SIDES,
    Recurrent,
    bands,
    dino,
    least_leak,
    modeling,
    one_axis_gap,
    page,
    softpick,
    square_sum,
)
from tests.support.ledger import record
from tests.support.libraries import imported
from theory.tools.resonances import least_drop

U = 2.0**-24
DIM = 16
SHIFTS = st.integers(0, 2**31 - 1)

causal = pytest.mark.evidence("causal_convolution_is_causal_attention", "exact")
rotations = pytest.mark.evidence("rotations_select_shifts_without_resonance", "exact")
sinks = pytest.mark.evidence("borders_are_limits_of_attention", "exact")
spheres = pytest.mark.evidence("unit_encodings_have_the_gap_of_a_spherical_code", "exact")
ranks = pytest.mark.evidence("low_rank_attention_cannot_express_convolution", "exact")


def attention(name: str, kind: str, **options: Any) -> Any:
    """One layer of transformers, of one head of 16 numbers, evaluated as it is written."""
    module = modeling(name)
    config = getattr(imported("transformers"), f"{kind}Config")(
        **{
            "hidden_size": DIM,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": DIM,
            "num_hidden_layers": 1,
            "vocab_size": 8,
        }
        | options
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(module, f"{kind}Attention")(config, layer_idx=0).eval()


def unturned(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables of angle 0."""
    shape = (1, tokens.shape[1], DIM)
    return torch.ones(shape).to(tokens), torch.zeros(shape).to(tokens)


def opposite(count: int, size: float) -> Tensor:
    """A target among tokens that are its opposite."""
    tokens = torch.full((1, count, DIM), -size)
    tokens[0, 0] = size
    return tokens


def identities(layer: Any) -> None:
    """Queries, keys and values are the tokens."""
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        torch.nn.init.eye_(projection.weight)


def test_page_is_what_the_program_writes() -> None:
    modeling("gemma2")  # skips without the libraries
    text = PAGE.read_text(encoding="utf-8")
    assert page() == text, "run python -m tests.pages.attention_in_2026 --write"


# Scores in a range --------------------------------------------------------------------------------


@given(st.lists(st.fractions(0, 5, max_denominator=8), min_size=1, max_size=8))
def test_scores_in_a_range_leak_at_least_equation_1(others: list[Fraction]) -> None:
    """Weights e^-x are 2^-x here, whose powers are whole: rational, so nothing is rounded."""
    drops = [int(x) for x in others]
    leaked = sum(Fraction(1, 2**x) for x in drops)
    spread = max(drops)
    rest = len(drops) * Fraction(1, 2**spread)
    assert leaked / (1 + leaked) >= rest / (1 + rest)
    if min(drops) == spread:
        assert leaked / (1 + leaked) == rest / (1 + rest)


def capped(cap: float, tokens: Tensor) -> Tensor:
    """Weights of Gemma 2's attention."""
    layer = attention("gemma2", "Gemma2", attn_logit_softcapping=cap, query_pre_attn_scalar=1)
    identities(layer)
    with torch.no_grad():
        weights: Tensor = layer(tokens, unturned(tokens), None)[1]
    return weights[0, 0]


def test_soft_cap_of_50_never_gives_one_hot_weights() -> None:
    """Of the others each has e^-100, 26.5 of the smallest numbers; a cap of 52 rounds them away."""
    weights = capped(50.0, opposite(9, 2.0**20))[0]
    units = weights[1:].double() * 2.0**149
    assert (units > 0).all()  # on a processor that keeps subnormal numbers, as torch does
    # Rounded once by the exponential, within two units, and once by the division.
    assert (units - math.exp(-100) * 2.0**149).abs().max() <= 3
    assert 2 * 50 < ONE_HOT < 2 * 52
    assert torch.equal(capped(52.0, opposite(9, 2.0**20))[0], torch.eye(9)[0])


@given(SHIFTS, st.sampled_from([1.0, 2.0**10, 2.0**30]))
def test_no_tokens_leave_the_range_of_a_soft_cap(seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = size * torch.randn(1, 6, DIM, generator=generator)
    assert (capped(50.0, tokens) > 0).all()


def normalised(gain: float, tokens: Tensor) -> Tensor:
    """Weights of Qwen 3's attention, with equal gains of queries and keys."""
    layer = attention("qwen3", "Qwen3")
    identities(layer)
    torch.nn.init.constant_(layer.q_norm.weight, gain)
    torch.nn.init.constant_(layer.k_norm.weight, gain)
    with torch.no_grad():
        weights: Tensor = layer(tokens, unturned(tokens), None)[1]
    return weights[0, 0].double()


def rounding(spread: float, keys: int) -> float:
    """What float32 adds to a weight, relatively, in the layers of Qwen 3.

    A query and a key are normalised with at most DIM + 6 roundings for each number, and their
    product has DIM more, relative to at most half the spread; maximum, exponential (two units), sum
    of the keys and quotient follow. Twice that, for terms of higher order.
    """
    return 2 * U * (spread * (3 * DIM + 14) + keys + 5)


@given(SHIFTS, st.sampled_from([0.5, 1.0, 1.5]))
def test_qk_norm_leaks_at_least_what_its_gains_say(seed: int, gain: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 6, DIM, generator=generator)
    spread = 2 * DIM**0.5 * gain**2
    least = 1 - least_leak(6, spread)
    assert normalised(gain, tokens).max() <= least * (1 + rounding(spread, 6))
    # The norm's epsilon, of 1e-6 beside squares of 2^40, is less than a rounding.
    best = normalised(gain, opposite(6, 2.0**20))[0, 0]
    assert abs(best - least) <= least * rounding(spread, 6)


def test_continuous_bias_of_swin_v2_selects_each_shift_and_leaks_its_16() -> None:
    """Heads for all nine shifts of a 3 x 3 kernel, in a window of 4 x 4; the content is zero."""
    module, side = modeling("swinv2"), 4
    shifts = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    heads, scale = len(shifts), 2.0**12
    config = imported("transformers").Swinv2Config()
    layer = module.Swinv2SelfAttention(config, 2 * heads, heads, side).double().eval()
    first, _, last = layer.continuous_position_bias_mlp
    table = layer.relative_coords_table[0]  # by query minus key
    with torch.no_grad():
        for parameter in (first.weight, first.bias, last.weight):
            parameter.zero_()
        for head, shift in enumerate(shifts):
            place = table[side - 1 - shift[0], side - 1 - shift[1]]
            for axis in (0, 1):
                for turn, sign in enumerate((1.0, -1.0)):
                    unit = 5 * head + 2 * axis + turn
                    first.weight[unit, axis], first.bias[unit] = sign, -sign * place[axis]
                    last.weight[head, unit] = -scale
            first.bias[5 * head + 4] = 1.0
            step = min((table[i + 1, 0, 0] - table[i, 0, 0]).item() for i in range(2 * side - 2))
            last.weight[head, 5 * head + 4] = scale * step / 2
        layer = layer.double()
        tokens = torch.zeros(1, side**2, 2 * heads, dtype=torch.float64)
        weights = layer(tokens, output_attentions=True)[1][0]
    assert 5 * 102 <= first.out_features == 512
    least = least_leak(side**2, 16)
    for head, (a, b) in enumerate(shifts):
        for i in range(side):
            for j in range(side):
                if 0 <= i + a < side and 0 <= j + b < side:
                    target = weights[head, side * i + j, side * (i + a) + j + b].item()
                    # Sigmoids within e^-250 of 0 and 1: what is left is rounding, of scores of 16.
                    assert abs(1 - target - least) <= 2.0**-52 * (16 + side**2 + 8)
    assert scale * step / 2 > 250


# Rotary bands -------------------------------------------------------------------------------------


@rotations
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_gap_of_m_rope_is_that_of_each_axis_alone(name: str) -> None:
    found = bands(name)
    base = {"qwen2_vl": 10**6, "qwen3_vl": 5 * 10**5}[name]
    sections = {"qwen2_vl": (16, 24, 24), "qwen3_vl": (24, 20, 20)}[name]
    assert tuple(len(found[axis]) for axis in AXES) == sections
    every = sorted((f for axis in AXES for f in found[axis]), reverse=True)
    if name == "qwen2_vl":
        split = (every[:16], every[16:40], every[40:])
    else:
        split = (every[0:60:3] + every[60:], every[1:60:3], every[2:60:3])
    assert [list(found[axis]) for axis in AXES] == list(split)
    # Float32's frequencies are those of the formula to a few units, by an exponential of its own.
    assert all(abs(f / base ** (-i / 64) - 1) <= 32 * U for i, f in enumerate(every))
    for axis in AXES:
        gap = least_drop([Fraction(f) for f in found[axis]], 1000)
        assert abs(float(gap) - one_axis_gap(found[axis])) <= 2.0**-40 * float(gap)
    record(dtype=torch.float32)


def test_band_of_the_width_is_out_of_proportion_for_float32() -> None:
    largest = max(bands("qwen2_vl")["width"])
    amplitudes = ONE_HOT / one_axis_gap([largest])
    spacing = torch.tensor(amplitudes).nextafter(torch.tensor(math.inf)) - torch.tensor(amplitudes)
    assert amplitudes > 6e9
    assert spacing == 512
    assert torch.tensor(largest).cos() == 1


@rotations
@given(SHIFTS)
@example(1)
def test_no_rotary_head_exceeds_equation_2(seed: int) -> None:
    """Any query and key, turned by transformers' own code, at three places of one axis."""
    module = modeling("dinov3_vit")
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.rand(DIM // 2, generator=generator, dtype=torch.float64)
    query, key = torch.randn(2, DIM, generator=generator, dtype=torch.float64)
    if seed % 2:
        key = query  # T14's head attains the bound
    angles = torch.arange(3)[:, None] * frequencies.tile(2)
    queries, keys = query.expand(1, 1, 3, DIM), key.expand(1, 1, 3, DIM)
    turned, placed = module.apply_rotary_pos_emb(queries, keys, angles.cos(), angles.sin())
    below, at, above = (placed[0, 0] @ turned[0, 0, 1]).tolist()
    sizes = (query.view(2, -1).norm(dim=0) * key.view(2, -1).norm(dim=0)).tolist()
    bound = sum(
        a * one_axis_gap([theta]) for a, theta in zip(sizes, frequencies.tolist(), strict=True)
    )
    # 16 products with 16 roundings each at most, and those of four sums, of terms of size Σ a.
    slack = 2.0**-52 * 64 * sum(sizes)
    assert at - max(below, above) <= bound + slack
    if seed % 2:
        assert at - max(below, above) >= bound - slack


@rotations
@pytest.mark.parametrize("patches", SIDES)
def test_gap_of_dinov3_falls_with_the_square_of_the_side(patches: int) -> None:
    """Its own tables, of an image of so many patches: neighbours differ by the angles of (3)."""
    module = modeling("dinov3_vit")
    config = module.DINOv3ViTConfig()
    rotary = module.DINOv3ViTRopePositionEmbedding(config).eval()
    pixels = torch.zeros(1, 3, config.patch_size * patches, config.patch_size)
    cosines, sines = rotary(pixels)
    angles = dino(patches)
    table = torch.complex(cosines.double(), sines.double())[:, : len(angles)]  # the axis of rows
    steps = (table[1:] * table[:-1].conj()).mean(dim=0)
    # Coordinates, angles and tables of float32 are off by a few units of angles of up to 2π.
    slack = 2 * 64 * U
    turns = torch.tensor(angles, dtype=torch.float64)
    assert (steps - torch.polar(torch.ones_like(turns), turns)).abs().max() <= slack
    gap = least_drop([Fraction(theta) for theta in angles], patches - 1)
    assert abs(float(gap) - one_axis_gap(angles)) <= 2.0**-40 * float(gap)
    assert float(gap) <= 8 * math.pi**2 * square_sum() / patches**2
    record(dtype=torch.float32)


# Positions, windows and sinks ---------------------------------------------------------------------


@causal
@given(SHIFTS)
def test_layer_without_positions_errs_by_its_floor(seed: int) -> None:
    """SmolLM3's, on the two lines of T22: one output, two convolutions."""
    layer = attention("smollm3", "SmolLM3", no_rope_layers=[0])
    assert not layer.use_rope
    generator = torch.Generator().manual_seed(seed)
    taps = torch.randint(-9, 10, (3, DIM), generator=generator)  # at -1, -2, -3
    seen = (taps > 0).float()
    own = torch.rand(1, DIM, generator=generator)
    first = torch.cat([1 - seen, seen.flip(0), own]).unsqueeze(0)
    second = torch.cat([seen, (1 - seen).flip(0), own]).unsqueeze(0)
    with torch.no_grad():
        one, two = (layer(x, unturned(x), None)[0][0, -1].double() for x in (first, second))
        # The same terms in another order. A score has 3 DIM roundings of sizes up to `reach`;
        # softmax and its product with the values 7 each, and the projections of values DIM each,
        # of sizes up to `size`. Two outputs, and twice that for terms of higher order.
        size = layer.o_proj.weight.abs() @ layer.v_proj.weight.abs().sum(dim=1)
        query, key = (p.weight.abs().sum(dim=1) for p in (layer.q_proj, layer.k_proj))
        reach = (query @ key).item() * layer.scaling
    bound = 4 * (2 * 3 * DIM * reach + 7 + 7 + 2 * DIM) * U * size.max().item()
    assert (one - two).abs().max() <= bound
    (convolved_one, convolved_two) = (
        sum(int(taps[i] @ x[0, -2 - i].long()) for i in range(3)) for x in (first, second)
    )
    assert convolved_one - convolved_two == int(taps.abs().sum())
    record(dtype=torch.float32)


@spheres
def test_learned_table_of_a_cross_polytope_has_a_gap_of_1() -> None:
    """ViT's attention on 2 D places, plus and minus the unit vectors: a circular shift, one-hot."""
    module = modeling("vit")
    config = imported("transformers").ViTConfig(hidden_size=DIM, num_attention_heads=1)
    config._attn_implementation = "eager"
    layer = module.ViTAttention(config).eval()
    places = torch.cat([torch.eye(DIM), -torch.eye(DIM)])
    following = places.roll(-1, dims=0)
    scale = 2.0**9  # over the root of 16, times a gap of 1: 128 > 103.97
    with torch.no_grad():
        for projection in (layer.q_proj, layer.k_proj):
            projection.bias.zero_()
        layer.k_proj.weight.copy_(torch.eye(DIM))
        layer.q_proj.weight.copy_(scale * following[:DIM].T)  # e_D goes to -e_1
        weights = layer(places.unsqueeze(0))[1][0, 0]
        scores = layer.q_proj(places) @ layer.k_proj(places).T / scale
    assert torch.equal(weights, torch.eye(2 * DIM).roll(1, dims=1))
    best, second = scores.topk(2, dim=1).values.unbind(dim=1)
    assert torch.equal(best - second, torch.ones(2 * DIM))
    record(dtype=torch.float32)


@pytest.mark.parametrize("layers", [1, 2])
def test_sliding_window_reaches_its_tokens_and_no_more(layers: int) -> None:
    modeling("mistral")
    transformers, window = imported("transformers"), 3
    config = transformers.MistralConfig(
        hidden_size=DIM,
        intermediate_size=DIM,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_hidden_layers=layers,
        vocab_size=8,
        sliding_window=window,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.MistralModel(config).eval()
        tokens = torch.randn(1, 9, DIM)
    reach = layers * (window - 1)
    with torch.no_grad():
        before = model(inputs_embeds=tokens, use_cache=False).last_hidden_state[0, -1]
        for back in range(1, 9):
            changed = tokens.clone()
            changed[0, -1 - back] = 7 - changed[0, -1 - back]
            after = model(inputs_embeds=changed, use_cache=False).last_hidden_state[0, -1]
            assert torch.equal(before, after) == (back > reach)


@sinks
def test_sink_of_zero_is_softmax_plus_one() -> None:
    """gpt-oss with sinks of 0, all scores being 0: each of T tokens has one part in T + 1."""
    layer = attention("gpt_oss", "GptOss")
    for parameter in (*layer.q_proj.parameters(), layer.sinks):
        torch.nn.init.zeros_(parameter)
    for count in (1, 3, 7):
        tokens = torch.ones(1, count, DIM)
        tables = tuple(t[..., : DIM // 2] for t in unturned(tokens))
        with torch.no_grad():
            weights = layer(tokens, tables, None)[1]
        assert torch.equal(weights, (torch.ones(()) / (count + 1)).expand_as(weights))
    record(dtype=torch.float32)


# Softpick -----------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.lists(st.integers(-9, 0), min_size=1, max_size=8))
def test_softpick_has_no_leak(target: int, others: list[int]) -> None:
    """Rationally, with powers of two for those of e."""

    def exp(score: int) -> Fraction:
        return Fraction(2) ** score

    weights = softpick([target, *others], exp)
    assert not any(weights[1:])
    assert 1 - weights[0] <= Fraction(len(others)) / (exp(target) - 1 + len(others))
    assert softpick([target, *[0] * len(others)], exp)[0] == 1
    if any(others):
        assert not any(softpick(others, exp))  # zeros, where the target is no key


# A state is a bottleneck --------------------------------------------------------------------------


def recurrent(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """Qwen3-Next's delta rule without decay: (T, K), (T, K), (T, D), (T,) to (T, D)."""
    rule = modeling("qwen3_next").torch_recurrent_gated_delta_rule
    heads = [x[None, :, None] for x in (query, key, value)]
    return rule(*heads, g=torch.zeros(1, len(key), 1), beta=beta[None, :, None])[0][0, :, 0]  # type: ignore[no-any-return]


@ranks
@given(SHIFTS)
def test_delta_rule_misses_a_delay_longer_than_its_state(seed: int) -> None:
    """A state of four numbers, a delay of five: one image and its opposite have one output."""
    size, delay, length = 4, 5, 10
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randint(-1, 2, (2, length, size), generator=generator).float()
    beta = torch.randint(0, 2, (length,), generator=generator).float()
    matrix = 2 * recurrent(query, key, torch.eye(length), beta)  # integers below 3^10: exact
    block = fmpz_mat([[int(x) for x in row] for row in matrix[delay:, :delay].tolist()])
    assert block.rank() <= size
    kernel, nullity = block.nullspace()
    assert nullity >= 1
    hidden = [Fraction(int(kernel[i, 0])) for i in range(delay)]
    largest = max(abs(x) for x in hidden)
    hidden = [x / largest for x in hidden]
    seen = fmpq_mat(block) * fmpq_mat(delay, 1, [fmpq(x.numerator, x.denominator) for x in hidden])
    assert seen == fmpq_mat(delay, 1)
    # Images 1/2 ± hidden/2 have the same outputs from `delay` on, and delays that are 1 apart.
    assert max(abs((1 + x) / 2 - (1 - x) / 2) for x in hidden) == 1
    record(dtype=torch.float32)


@given(st.tuples(*[st.integers(-4, 4)] * 4))
def test_gates_of_content_confuse_an_image_and_its_opposite(drawn: tuple[int, ...]) -> None:
    """One number of state, two tokens, and keys, gates and decays that look at them.

    Along the boundary of the square from (0, 0) by (1, 0) to (1, 1), the difference of the states
    of x and 1 - x changes its sign: somewhere it is 0, and there x and 1 - x are 1 apart.
    """
    rule = modeling("qwen3_next").torch_recurrent_gated_delta_rule
    a, b, c, d = drawn

    def state(x: Tensor) -> float:
        key, decay, beta = 1 + a * x, -torch.nn.functional.softplus(b * x), (c * x + d).sigmoid()
        heads = [y.view(1, 2, 1, 1) for y in (torch.ones(2), key, x)]
        gates = {"g": decay.view(1, 2, 1), "beta": beta.view(1, 2, 1)}
        return float(rule(*heads, **gates, output_final_state=True)[1])

    def boundary(t: float) -> Tensor:
        return torch.tensor([min(t, 1.0), max(t - 1.0, 0.0)])

    def difference(t: float) -> float:
        return state(boundary(t)) - state(1 - boundary(t))

    low, high = 0.0, 2.0
    assert difference(low) == -difference(high)
    rises = difference(low) <= 0
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if (difference(middle) <= 0) == rises else (low, middle)
    for t in (low, high):
        assert (2 * boundary(t) - 1).abs().max() == 1
    assert high - low == 2.0**-15
    assert (difference(low) <= 0) == rises
    assert difference(low) * difference(high) <= 0


@ranks
@pytest.mark.parametrize("delay", [1, 3])
def test_delta_rule_delays_exactly_with_one_key_more(delay: int) -> None:
    size, length = delay + 1, 12  # of two or four numbers: the division by their root is exact
    at = torch.arange(length)
    key, query = torch.eye(size)[at % size], size**0.5 * torch.eye(size)[(at + 1) % size]
    x = torch.randint(-9, 10, (length, 3), generator=torch.Generator().manual_seed(0)).float()
    y = recurrent(query, key, x, torch.ones(length))
    wanted = torch.cat([torch.zeros(delay, 3), x[:-delay]])
    if size == 4:  # the root of 2 is not a number of float32
        assert torch.equal(y, wanted)
    assert (y - wanted).abs().max() <= 4 * U * 9
    record(dtype=torch.float32)


def test_state_of_qwen3_next_is_what_its_own_layer_keeps() -> None:
    """A small one's: the state of the delta rule as it is returned, and the width of the kernel."""
    module = modeling("qwen3_next")
    options = {
        "hidden_size": 8,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 4,
        "linear_num_value_heads": 2,
        "linear_value_head_dim": 6,
    }
    config = imported("transformers").Qwen3NextConfig(**options)
    layer = module.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    keys, values = torch.zeros(1, 5, 2, 4), torch.zeros(1, 5, 2, 6)
    gates = torch.zeros(1, 5, 2)
    _, state = module.torch_recurrent_gated_delta_rule(
        keys, keys, values, g=gates, beta=gates, output_final_state=True
    )
    inputs, _, width = layer.conv1d.weight.shape
    found = Recurrent.of_qwen3_next(**options)
    assert found == Recurrent(state.numel() + (width - 1) * inputs, 8)
    assert Recurrent.of_qwen3_next().longest_delay == 268


# The headwise norm --------------------------------------------------------------------------------


def differential(tokens: Tensor) -> tuple[Tensor, float, float]:
    """DiffLlama's attention before its constant, the factor of its values, and its epsilon."""
    layer = attention(
        "diffllama", "DiffLlama", num_attention_heads=2, num_key_value_heads=2, hidden_size=2 * DIM
    ).double()
    torch.nn.init.eye_(layer.v_proj.weight)
    torch.nn.init.eye_(layer.o_proj.weight)
    with torch.no_grad():
        output = layer(tokens, unturned(tokens), None)[0]
        one, two = (
            torch.exp((q * k).sum().float()).item()
            for q, k in (
                (layer.lambda_q1, layer.lambda_k1),
                (layer.lambda_q2, layer.lambda_k2),
            )
        )
    gain = 1 - (one - two + layer.lambda_init)
    output = output / ((1 - layer.lambda_init) * math.copysign(1, gain))
    return output, abs(gain), layer.groupnorm.eps


@given(SHIFTS, st.sampled_from([2.0**-12, 2.0**-10, 2.0**-8]))
def test_headwise_norm_passes_small_values_and_no_large_ones(seed: int, size: float) -> None:
    """One token, whose weights are 1: what is left of the layer is its norm."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.rand(1, 1, 2 * DIM, generator=generator).double() + 2.0**-4
    output, gain, epsilon = differential(size * tokens)
    value = gain * size * tokens
    square = (value**2).mean().item()
    error = 1 - math.sqrt(epsilon) * output / value
    assert (error > 0).all()
    assert (error <= square / (2 * epsilon)).all()
    # Far above its epsilon the size of an image is lost, but for a part epsilon / m of it.
    (large, *_), (larger, *_) = (differential(2.0**k * tokens) for k in (20, 21))
    assert ((larger / large - 1).abs() <= U).all()
    assert output.norm() <= math.sqrt(2 * DIM) * (1 + U)
