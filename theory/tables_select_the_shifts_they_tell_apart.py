"""T14. Tables select the shifts they tell apart.

New here; the tables are those of arXiv 2103.14030 (Swin), 2106.08254 (BEiT), 1906.05909 and
1910.10683 (T5). The page `docs/theorems/tables_select_the_shifts_they_tell_apart.md` numbers the
equations. The buckets of T5 are compared in integers: no logarithm is rounded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import prod

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import BITS, Exact, ball, precision

__all__ = [
    "THEOREM",
    "axes_mass",
    "is_alone",
    "least_error",
    "prove",
    "t5_bucket",
]

THEOREM = Theorem(
    slug="tables_select_the_shifts_they_tell_apart",
    number="T14",
    source="",
    title="Tables select the shifts they tell apart",
    gist="Swin, BEiT, rows and columns, T5: the exact leak, and the floor where buckets are shared",
    claim=(
        "Heads that look their scores up in a table, by the bucket of the displacement, select "
        "every shift that is alone in its bucket: one entry 0 and all others −g give the gap g; "
        "where a query sees another key in the bucket of its target, no layer of such heads has a "
        "smaller worst error than a constant. "
        "On T keys the leak is exactly L/(1 + L), L = (T − 1)e^−g, the least of all tables of that "
        "range; one table for each axis has L = Π(1 + (n_i − 1)e^−g) − 1. A target beyond the edge "
        "sees the mean of all keys, and with a sink at −g/2 zero. A shared bucket costs half the "
        "range of the pixels, and 1 − 1/m of their variance in the mean square, at a query with "
        "m ≥ 2 of its keys in view; with padded keys every shift that is not alone has one. "
        "T5 selects the shifts |Δ| < 8."
    ),
    hypotheses=(
        "head h scores key k at query q by s_h(β(k − q)): a table s_h of real numbers for each "
        "head, one map β from displacements to buckets; nothing else enters the scores",
        "the keys are finitely many, T of them; for tables by axis, a box of n_1 × … × n_d; there "
        "may be a sink, one more key, of zero value and score −cg, 0 < c < 1",
        "a shift is alone if no other displacement in reach, from a query to a key, has its bucket",
        "leaks: the weights are the softmax of the scores, over the reals",
        "floors: any number of heads, any values and biases, any normaliser by which equal scores "
        "of a row have equal weights; the pixels fill an interval of length R; the keys are "
        "padded, one at every target, or some query has target and another key of its bucket "
        "among the keys",
    ),
    notation={
        "β(δ), s_h": "the bucket of a displacement, and the table of head h",
        "r_δ, v_h": "the one-hot vector of β(δ), and the table of head h as a vector",
        "Δ, t": "the shift that a head is to select, and its target t = q + Δ",
        "g, x": "the gap, and x = e^−g; c: the depth of the sink in units of g",
        "T, n_i": "number of keys, and of keys on axis i",
        "L": "all weight off the limit, relative to the limit's",
        "m": "how many keys in view share the bucket of the target",
        "R, σ²": "length of the interval of the pixels, and their variance",
        "W_k, C_q,B": "what the kernel has for key k, and the layer for all keys of bucket B",
        "ℓ, M, N, Λ": "T5: distance |δ|, exact distances, max_distance, wide buckets of a side",
    },
    proof_idea=(
        "A table is an encoding, the one-hot vector of the bucket. A shift that is alone has an "
        "entry that no other key in view reads. Keys of one bucket have one weight in every head, "
        "so the layer sees their sum alone: exchange two of their pixels, and the output stays."
    ),
    references=(
        "arXiv:2103.14030",
        "arXiv:2106.08254",
        "arXiv:1910.10683",
        "arXiv:1803.02155",
        "arXiv:1906.05909",
    ),
    objects=(
        "constructions.encodings.BiasTable",
        "constructions.encodings.RowColumn",
        "constructions.encodings.T5Buckets",
    ),
)


# Numbers ------------------------------------------------------------------------------------------


def axes_mass(
    g: Exact, shape: Sequence[int], on_axis: Sequence[bool], *, sink: Fraction | None = None
) -> arb:
    """A ball around L for one table of 0 and -g for each axis; equations (10) and (11).

    Of one axis of T keys it is that of a single table, equations (4) and (8).

    Args:
        g: the gap.
        shape: keys per axis.
        on_axis: whether a key has the target's coordinate, for each axis.
        sink: c, for a sink of score -c g; None for none.

    Raises:
        ValueError: the target is no key, and no sink takes its place: there is no limit.
    """
    if not all(on_axis) and sink is None:
        raise ValueError("a target beyond the grid has no limit without a sink")
    with precision(4 * BITS):
        x = (-ball(g)).exp()
        factors = [1 + (n - 1) * x if on else n * x for n, on in zip(shape, on_axis, strict=True)]
        total = prod(factors, start=arb(1))
        of_sink = arb(0) if sink is None else (-ball(g) * ball(sink)).exp()
        return total - 1 + of_sink if all(on_axis) else total / of_sink


def t5_bucket(delta: int, num_buckets: int = 32, max_distance: int = 128) -> int:
    """The bucket of a displacement by equation (16), logarithms compared as integers (17)."""
    side = num_buckets // 2
    exact, distance = side // 2, abs(delta)
    wide = side - exact
    bucket = distance
    if distance >= exact:
        reached = (
            j
            for j in range(wide)
            if distance**wide >= max_distance**j * exact ** (wide - j)  # j = 0 always is
        )
        bucket = exact + max(reached)
    return bucket + (side if delta > 0 else 0)


def is_alone(shift: int, reach: Iterable[int], bucket: Callable[[int], int]) -> bool:
    """Whether no other displacement in reach has the bucket of a shift; definition (2)."""
    return all(delta == shift or bucket(delta) != bucket(shift) for delta in reach)


def least_error(
    kernel: Mapping[int, Fraction], view: Iterable[int], bucket: Callable[[int], int]
) -> Fraction:
    """What every layer of tables errs by at least, for pixels of range 1; equation (14).

    Args:
        kernel: what the convolution has for each displacement; 0 where it is silent.
        view: the displacements to the keys of one query.
        bucket: the map that all tables share.
    """
    shared: dict[int, list[Fraction]] = {}
    for delta in view:
        shared.setdefault(bucket(delta), []).append(kernel.get(delta, Fraction(0)))
    total = Fraction(0)
    for entries in shared.values():
        median = sorted(entries)[len(entries) // 2]
        total += sum((abs(entry - median) for entry in entries), Fraction(0))
    return total / 2


# The proof ----------------------------------------------------------------------------------------

G = sp.Symbol("g", positive=True)
X = sp.Symbol("x", positive=True)
KEYS = sp.Symbol("T", integer=True, positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T14: equations (1) to (20) of its page."""
    proof = Proof()
    _prove_selection(proof)
    _prove_beyond_the_edge(proof)
    _prove_axes(proof)
    _prove_floors(proof)
    _prove_t5(proof)
    _prove_layouts(proof)
    _prove_half_precision(proof)
    return proof.steps


def leak_of(mass: sp.Expr) -> sp.Expr:
    """The attention off the limit, L / (1 + L)."""
    return mass / (1 + mass)


def _prove_selection(proof: Proof) -> None:
    """A table is an encoding; a shift that is alone has the gap g, and leaks as stated: (1)-(6)."""
    table = sp.Matrix(sp.symbols("s:5", real=True))
    proof.check(
        "the one-hot vector of a bucket reads its entry",
        all(identical(table.dot(sp.eye(5)[:, bucket]), table[bucket]) for bucket in range(5)),
        equation=1,
    )
    reach = range(-3, 4)
    folded = {delta: abs(delta) for delta in reach}
    alone = [shift for shift in reach if is_alone(shift, reach, folded.__getitem__)]
    proof.check("of the buckets |δ| the shift 0 alone is alone", alone == [0], equation=2)
    gaps = [0 - (-G if folded[delta] else 0) for delta in reach if delta not in alone]
    proof.check("it scores g more than any other", {*gaps} == {G} and positive(G), equation=3)
    others = (KEYS - 1) * X
    weights = [sp.exp(0), *[sp.exp(-G)] * 4]
    proof.check(
        "softmax leaks L/(1 + L), L = (T - 1) x; written out for one 0 and 4 times -g",
        equal(1 - 1 / (1 + others), leak_of(others))
        and equal(1 - weights[0] / sum(weights), leak_of(others).subs({KEYS: 5, X: weights[1]})),
        equation=4,
    )
    leak, more = sp.symbols("epsilon r", positive=True)
    needed = leak / ((KEYS - 1) * (1 - leak))
    proof.check(
        "the leak is ε at x = ε / ((T - 1)(1 - ε)), and falls with x",
        equal(leak_of(others.subs(X, needed)), leak)
        and equal(leak_of(more + X) - leak_of(X), more / ((1 + X) * (1 + X + more)))
        and positive(more / ((1 + X) * (1 + X + more))),
        equation=5,
    )
    spare = sp.Symbol("p", nonnegative=True)
    proof.check(
        "a score of -g + p, p >= 0, weighs at least x: exp(p) - 1 is 0 at 0 and grows",
        identical(sp.exp(-G + spare), sp.exp(-G) * sp.exp(spare))
        and (sp.exp(spare) - 1).subs(spare, 0) == 0
        and sp.diff(sp.exp(spare) - 1, spare).is_positive is True,
        equation=6,
    )


def _prove_beyond_the_edge(proof: Proof) -> None:
    """Off the grid all keys tie; a sink makes zeros of that: (7), (8)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    proof.check(
        "T equal scores share evenly, at any g; of T = 2 + m keys none has all: 1/T < 1",
        equal(sp.exp(-G) / (KEYS * sp.exp(-G)), 1 / KEYS)
        and equal(1 - 1 / (2 + m), (1 + m) / (2 + m))
        and positive((1 + m) * (2 + m)),
        equation=7,
    )
    of_sink = sp.Symbol("y", positive=True)  # x^c
    on_grid, off_grid = (KEYS - 1) * X + of_sink, KEYS * X / of_sink
    proof.check(
        "with a sink: 1, T - 1 times x, and x^c; beyond the edge T times x, and x^c",
        equal(1 - 1 / (1 + (KEYS - 1) * X + of_sink), leak_of(on_grid))
        and equal(1 - of_sink / (of_sink + KEYS * X), leak_of(off_grid)),
        equation=8,
    )
    c = sp.Symbol("c", positive=True)
    proof.check(
        "x / x^c = x^(1 - c), and the exponents c and 1 - c add up to 1: at c = 1/2 they are equal",
        identical(sp.exp(-G) / sp.exp(-c * G), sp.exp(-(1 - c) * G))
        and identical(c + (1 - c), 1)
        and (c - (1 - c)).subs(c, sp.Rational(1, 2)) == 0,
        equation=8,
    )


def _prove_axes(proof: Proof) -> None:
    """One table for each axis: (9) to (11)."""
    misses = [[sum(differ) for differ in product((0, 1), repeat=d)] for d in (1, 2, 3)]
    proof.check(
        "two points differ on no axis, in one way, or on one at least, and one occurs: d = 1, 2, 3",
        all(m.count(0) == 1 and min(miss for miss in m if miss) == 1 for m in misses),
        equation=9,
    )
    for shape, target in (((3,), (1,)), ((3, 2), (0, 1)), ((2, 3, 2), (1, 1, 0)), ((3, 2), (0, 5))):
        whole = sum(
            X ** sum(k != t for k, t in zip(key, target, strict=True))
            for key in product(*map(range, shape))
        )
        factors = [1 + (n - 1) * X if t < n else n * X for n, t in zip(shape, target, strict=True)]
        proof.check(
            f"the sum over a box of shape {shape}, target {target}, is the product over its axes",
            identical(whole, sp.Mul(*factors)),
            equation=10,
        )
    others = sp.symbols("a:3")  # n_i - 1
    one_table = (sp.Mul(*(1 + a for a in others)) - 1) * X
    by_axis = sp.Mul(*(1 + a * X for a in others)) - 1
    coefficients = sp.Poly(one_table - by_axis, *others).coeffs()
    proof.check(
        "three axes: of a product of j of the n_i - 1 there is x - x^j less, j = 2 or 3",
        len(coefficients) == 4 and set(coefficients) == {X - X**2, X - X**3},
        equation=11,
    )
    z = sp.Symbol("z", positive=True)
    proof.check(
        "x - x^2 and x - x^3 are positive for x = 1/(1 + z)",
        all(
            equal((X - X**j).subs(X, 1 / (1 + z)), less / (1 + z) ** j) and positive(less)
            for j, less in ((2, z), (3, z * (2 + z)))
        ),
        equation=11,
    )


def _prove_floors(proof: Proof) -> None:
    """What a shared bucket costs: (12) to (15)."""
    heads, keys = 3, 5
    bucket = (0, 1, 1, 2, 1)
    weight = [[sp.Symbol(f"w{h}_{b}") for b in range(3)] for h in range(heads)]
    value, bias = sp.symbols(f"M:{heads}"), sp.Symbol("b")
    pixels = sp.symbols(f"X:{keys}")

    def output(image: Sequence[sp.Expr]) -> sp.Expr:
        per_head = (
            sum(weight[h][bucket[k]] * image[k] for k in range(keys)) * value[h]
            for h in range(heads)
        )
        return bias + sum(per_head)

    sums = [sum(pixels[k] for k in range(keys) if bucket[k] == b) for b in range(3)]
    seen = [sum(weight[h][b] * value[h] for h in range(heads)) for b in range(3)]
    exchanged = [pixels[k] for k in (0, 2, 1, 3, 4)]
    proof.check(
        "three heads, five keys, three buckets: the layer sees the sum over each bucket alone",
        identical(output(pixels), bias + sum(s * c for s, c in zip(sums, seen, strict=True))),
        equation=12,
    )
    proof.check(
        "two pixels of one bucket may be exchanged, and two of different ones may not",
        identical(output(pixels), output(exchanged))
        and not identical(output(pixels), output([pixels[k] for k in (1, 0, 2, 3, 4)])),
        equation=12,
    )
    low, high, y = sp.symbols("a b y", real=True)
    p, r = sp.symbols("p r", nonnegative=True)
    proof.check(
        "an output is off one of two wanted ones by half their distance: (b - y) + (y - a) = b - a",
        identical((high - y) + (y - low), high - low),
        equation=13,
    )
    proof.check(
        "the constant (a + b)/2 is off by (b - a)/2 at most: for X = a + p = b - r",
        all(nonnegative((p + r) / 2 - sign * (p - (p + r) / 2)) for sign in (1, -1)),
        equation=13,
    )
    _prove_that_one_key_in_view_is_no_floor(proof)
    coefficient, rest = sp.symbols("c e", real=True)
    across = (coefficient * high + rest) - (coefficient * low + rest)
    proof.check(
        "a linear form grows by R |c| as one pixel crosses its interval",
        identical(across, coefficient * (high - low)),
        equation=14,
    )
    below = sp.Symbol("o", nonnegative=True)
    between = sp.Abs(coefficient - (coefficient - p)) + sp.Abs((coefficient + r) - coefficient)
    outside = sp.Abs(below) + sp.Abs(below + p)
    proof.check(
        "|a - c| + |b - c| is b - a for c = a + p = b - r, and 2 o more for c = a - o, b = a + p",
        identical(between, (coefficient + r) - (coefficient - p))
        and identical(outside, p + 2 * below),
        equation=14,
    )
    one_of = {8: Fraction(1)}
    floors = [least_error(one_of, range(8 + m), lambda k: min(k, 8)) for m in (1, 2, 3, 4, 9)]
    proof.check(
        "a shift whose bucket has m = 1 key in view: no floor; m = 2, 3, 4 or 9: it is 1/2",
        floors == [0, *[Fraction(1, 2)] * 4],
        equation=14,
    )
    m = sp.Symbol("m", positive=True)
    proof.check(
        "(1 - c)^2 + (m - 1) c^2 = m (c - 1/m)^2 + 1 - 1/m",
        equal(
            (1 - coefficient) ** 2 + (m - 1) * coefficient**2,
            m * (coefficient - 1 / m) ** 2 + 1 - 1 / m,
        ),
        equation=15,
    )
    mean, deviation = sp.symbols("k_0 f", real=True)
    square = (mean + deviation - coefficient) ** 2
    apart = deviation**2 + (mean - coefficient) ** 2
    proof.check(
        "about a mean k_0 the squares of k_0 + f - c add up to f² + (k_0 - c)², and 2 f (k_0 - c)",
        identical(square - apart, 2 * deviation * (mean - coefficient)),
        equation=15,
    )


def _prove_that_one_key_in_view_is_no_floor(proof: Proof) -> None:
    """Two displacements of one bucket, never together in view: the shift is reached, (13)."""
    y = sp.Symbol("y", positive=True)  # e^(-g/2), the weight of the sink relative to an entry 0
    tables = ({-2: 1, 2: 1, -1: y**-2}, {-1: 1})  # all other entries are -g
    heads = []
    for table in tables:
        weights = sp.Matrix(3, 3, lambda q, k, t=table: t.get(k - q, y**2))
        totals = [sum(weights[q, :]) + y for q in range(3)]
        heads.append(
            sp.Matrix(3, 3, lambda q, k, w=weights, t=totals: sp.cancel(w[q, k] / t[q]).subs(y, 0))
        )
    proof.check(
        "three pixels, a sink, β(-2) = β(2): the difference of two heads tends to the shift by 2, "
        "in the limit y -> 0 of its quotients",
        heads[0] - heads[1] == sp.Matrix([[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        equation=13,
    )


def _prove_t5(proof: Proof) -> None:
    """T5's buckets, in integers, and which are singletons: (16) to (18)."""
    n, exact, farthest, wide, j = sp.symbols("n M N Lambda j", positive=True)
    logarithms = wide * (sp.log(n) - sp.log(exact)) - j * (sp.log(farthest) - sp.log(exact))
    powers = sp.log(n**wide / (farthest**j * exact ** (wide - j)))
    proof.check(
        "Λ log(l/M) - j log(N/M) is the logarithm of l^Λ / (N^j M^(Λ - j))",
        identical(sp.expand_log(powers), logarithms),
        equation=17,
    )
    with precision(BITS):
        ties = []
        agree = True
        for distance in range(8, 140):
            step = (8 * (arb(distance) / 8).log() / arb(16).log()).floor().unique_fmpz()
            if step is None:
                ties.append(distance)
            else:
                agree &= t5_bucket(-distance) == 8 + min(7, int(step))
    proof.check(
        "distances 8 to 139: integers decide as logarithms do, where these decide",
        agree,
        equation=17,
    )
    proof.check(
        "where they do not, at 16, 32, 64 and 128, the quotient is an integer: (l/8)^8 = 16^j",
        ties == [16, 32, 64, 128]
        and all(ell**8 == 16**j * 8**8 for ell, j in zip(ties, (2, 4, 6, 8), strict=True)),
        equation=17,
    )
    reach = range(-150, 151)
    for max_distance, starts in (
        (128, (*range(1, 9), 12, 16, 23, 32, 46, 64, 91)),
        (16, range(1, 16)),
    ):
        bucket = {delta: t5_bucket(delta, 32, max_distance) for delta in reach}
        proof.check(
            f"the buckets of a side begin at 0 and {list(starts)} for N = {max_distance}",
            [n for n in range(1, 151) if bucket[-n] != bucket[1 - n]] == list(starts)
            and all(bucket[n] == bucket[-n] + 16 for n in range(1, 151)),
            equation=16,
        )
        alone = max(n for n in starts if n + 1 in starts)
        proof.check(
            f"N = {max_distance}, shifts up to 150: alone are those from -{alone} to {alone}",
            [s for s in reach if is_alone(s, reach, bucket.__getitem__)]
            == list(range(-alone, alone + 1)),
            equation=18,
        )


def _prove_layouts(proof: Proof) -> None:
    """The index of Swin and BEiT tells all displacements of a window apart: (19)."""
    rows, columns = sp.symbols("w_1 w_2", integer=True, positive=True)
    i, j, a, b = sp.symbols("i j a b", integer=True)
    width = 2 * columns - 1

    def index(row: sp.Expr, column: sp.Expr) -> sp.Expr:
        return (rows - 1 - row) * width + (columns - 1 - column)

    proof.check(
        "a row weighs 2 w_2 - 1 in the index, and two columns differ by 2 w_2 - 2 at most",
        identical(index(i, j) - index(a, b), (a - i) * width + (b - j))
        and identical((columns - 1) - (-(columns - 1)), width - 1),
        equation=19,
    )
    window = {rows: 4, columns: 2}
    indices = [
        int(index(i, j).subs({**window, i: a, j: b})) for a in range(-3, 4) for b in (-1, 0, 1)
    ]
    proof.check(
        "a window of 4 x 2 uses each entry once", sorted(indices) == [*range(21)], equation=19
    )


def _prove_half_precision(proof: Proof) -> None:
    """From 8,196 keys on weights of 2^-25 lower the peak of float16: (20)."""
    weight, below_one = Fraction(1, 2**25), 1 - Fraction(1, 2**12)  # η/2, and half-way below 1
    proof.check(
        "8,195 other keys take the peak below 1 - 2^-12, and 8,194 do not",
        1 / (1 + 8195 * weight) < below_one < 1 / (1 + 8194 * weight),
        equation=20,
    )
