"""T20. Patches trade heads for width.

After arXiv 2111.01353; the counts are new here. The page
`docs/theorems/patches_trade_heads_for_width.md` numbers the equations. Kernels are dictionaries
from offsets to rows of exact numbers, the tap's matrix written in one line.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, prod

import sympy as sp
from flint import fmpq_mat

from theory.tools.proof import Proof, Step, Theorem, identical

__all__ = [
    "THEOREM",
    "by_signs",
    "distances",
    "flattened",
    "heads_of_width",
    "part_rank",
    "patch_matrix",
    "patch_shifts",
    "prove",
]

Offset = tuple[int, ...]
Kernel = Mapping[Offset, Sequence[int]]

THEOREM = Theorem(
    slug="patches_trade_heads_for_width",
    number="T20",
    source="",
    title="Patches trade heads for width",
    gist="a ViT's 16 x 16 patches: nine heads for a 3 x 3 kernel, or twenty of width 64",
    claim=(
        "On tokens that are patches of P^d pixels a convolution takes no fewer positional heads "
        "than the rank of its kernel by shifts of patches, and if its taps lie in a box of side P "
        "that rank is the number of shifts Δ from which a tap reads, which one-hot heads attain. "
        "For taps around 0 these are the Δ in {−1, 0, 1}^d with a tap of agreeing signs: 3^d for "
        "a full kernel, 2d + 1 for a plus. In general the rank is at most the number of shifts and "
        "at most (2P − 1)^d D_in D_out. "
        "Heads are then wide: Δ moves a matrix whose rank is at most min(D_in, D_out) times a "
        "product, over the axes, of P for Δ_i = 0 and else the reach of the taps on that side. One-"
        "hot heads of dimension D_h take Σ ⌈rank/D_h⌉; the ranks add up to at most "
        "(P + K − 1)^d min(D_in, D_out), and for some kernels of every size to just that: 972 for "
        "a 3 x 3 kernel and three channels on ViT-B/16, whose width is 768, in 20 heads of 64 for "
        "its 12."
    ),
    hypotheses=(
        "tokens are the patches of a grid, output pixels are grouped as input pixels are, stride 1",
        "for the lower bound: weights do not depend on the content, and some patch sees its shifts "
        "Δ among the keys",
        "the reach: taps at −m_i, …, m'_i on axis i, around 0, no more than P of them",
    ),
    notation={
        "P, d": "side of a patch in pixels, and the dimension",
        "δ, W_δ": "offset of a tap, key minus query in pixels, and its matrix",
        "t, e": "a patch, and a pixel within one, 0 ≤ e_i < P",
        "Δ, W̃_Δ": "a shift in patches, and its matrix, P^d D_in x P^d D_out",
        "B": "the kernel by shifts: a row for each Δ, columns for the distances e' − e and entries",
        "m_i, m'_i": "how far the taps reach before and after 0 on axis i; K = m + m' + 1",
    },
    proof_idea=(
        "Two pixels of patches Δ apart have the distance PΔ + e' − e, so that W̃_Δ consists of the "
        "taps at PΔ + s, |s_i| < P, and the W̃ are as dependent as the rows of B. Of a box of side "
        "P each s meets one tap at most: the rows have disjoint supports."
    ),
    references=("arXiv:2111.01353", "arXiv:2010.11929"),
    objects=("constructions.stock.vit",),
)


def distances(side: int, d: int) -> list[Offset]:
    """Of two pixels within their patches, e' - e."""
    return list(product(range(1 - side, side), repeat=d))


def patch_shifts(kernel: Kernel, side: int) -> list[Offset]:
    """The Δ from which a tap reads: those with a tap at PΔ + s, |s_i| < P."""
    d = len(next(iter(kernel)))
    found = set()
    for offset, entries in kernel.items():
        if any(entries):
            for step in distances(side, d):
                parts = [divmod(o - s, side) for o, s in zip(offset, step, strict=True)]
                if not any(rest for _, rest in parts):
                    found.add(tuple(whole for whole, _ in parts))
    return sorted(found)


def flattened(kernel: Kernel, side: int) -> fmpq_mat:
    """B: a row for each shift, a column for each distance within patches and each entry."""
    d, width = len(next(iter(kernel))), len(next(iter(kernel.values())))
    rows = []
    for shift in patch_shifts(kernel, side):
        row: list[int] = []
        for step in distances(side, d):
            offset = tuple(side * a + s for a, s in zip(shift, step, strict=True))
            row += kernel.get(offset, [0] * width)
        rows.append(row)
    return fmpq_mat(rows)


def patch_matrix(kernel: Kernel, side: int, shift: Offset, inputs: int) -> list[list[int]]:
    """Equation (2): W̃_Δ, pixels row-major, each with its channels."""
    d, width = len(shift), len(next(iter(kernel.values())))
    places = list(product(range(side), repeat=d))
    outputs = width // inputs
    matrix = []
    for key, i in product(places, range(inputs)):
        row = []
        for query, o in product(places, range(outputs)):
            offset = tuple(side * a + k - q for a, k, q in zip(shift, key, query, strict=True))
            row.append(kernel[offset][i * outputs + o] if offset in kernel else 0)
        matrix.append(row)
    return matrix


def by_signs(kernel: Kernel) -> list[Offset]:
    """Equation (6): the Δ of -1, 0, 1 with a tap that has its sign wherever it is not 0."""
    d = len(next(iter(kernel)))
    taps = [offset for offset, entries in kernel.items() if any(entries)]
    return [
        shift
        for shift in product((-1, 0, 1), repeat=d)
        if any(all(s == 0 or s * o > 0 for s, o in zip(shift, tap, strict=True)) for tap in taps)
    ]


def part_rank(shift: Offset, side: int, reach: tuple[int, int]) -> int:
    """Equation (7): the number of pixels of a patch that Δ moves; of taps -m, ..., m'."""
    before, after = reach
    return prod({0: side, 1: after, -1: before}[s] for s in shift)


def heads_of_width(
    side: int, reach: tuple[int, int], d: int, channels: int, head_dim: int
) -> tuple[int, int]:
    """Equation (9): the sum of ranks of a full kernel, and how many heads they fill."""
    ranks = [channels * part_rank(shift, side, reach) for shift in product((-1, 0, 1), repeat=d)]
    return sum(ranks), sum(ceil(rank / head_dim) for rank in ranks)


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    _matrices(proof)
    _ranks(proof)
    _boxes(proof)
    _widths(proof)
    return proof.steps


def _symbolic(reach: tuple[int, int]) -> dict[Offset, sp.Symbol]:
    before, after = reach
    return {(n,): sp.Symbol(f"w{n}") for n in range(-before, after + 1)}


def _matrices(proof: Proof) -> None:
    side, shift, key, query = sp.symbols("P Delta k q")
    proof.check(
        "pixel k of patch t + Δ less pixel q of patch t: P Δ + k - q",
        identical(
            (side * (sp.Symbol("t") + shift) + key) - (side * sp.Symbol("t") + query),
            side * shift + key - query,
        ),
        equation=1,
    )
    for size, reach in ((1, (1, 1)), (2, (1, 1)), (2, (2, 1)), (3, (1, 1)), (3, (0, 4))):
        taps = _symbolic(reach)
        kernel = {offset: [tap] for offset, tap in taps.items()}
        shifts = patch_shifts({o: [1] for o in taps}, size)
        first, last = shifts[0][0], shifts[-1][0]
        pixels = {n: sp.Symbol(f"x{n}") for n in range(first * size, (last + 1) * size)}
        proof.check(
            f"P = {size}, taps {-reach[0]} to {reach[1]}: the matrices of all shifts together are "
            "the convolution, at each pixel of a patch",
            all(
                identical(
                    sum(
                        pixels[size * patch[0] + place]
                        * patch_matrix(kernel, size, patch, 1)[place][pixel]
                        for patch in shifts
                        for place in range(size)
                    ),
                    sum(tap * pixels[pixel + offset[0]] for offset, tap in taps.items()),
                )
                for pixel in range(size)
            ),
            equation=2,
        )


def _ranks(proof: Proof) -> None:
    a = sp.Matrix(3, 2, sp.symbols("a:6"))
    v = sp.Matrix(2, 3, sp.symbols("v:6"))
    proof.check(
        "three shifts, two heads: the matrices Σ_h a_h(Δ) V_h have no minor of order 3",
        identical((a * v).det(), 0),
        equation=3,
    )
    for side, reach in ((2, (1, 1)), (2, (3, 2)), (3, (4, 4))):
        kernel: dict[Offset, list[int]] = {
            (n,): [n * n + 3 * n + 7, n + 5] for n in range(-reach[0], reach[1] + 1)
        }
        rows = [
            [v for line in patch_matrix(kernel, side, shift, 1) for v in line]
            for shift in patch_shifts(kernel, side)
        ]
        whole, table = fmpq_mat(rows), flattened(kernel, side)
        proof.check(
            f"P = {side}, taps {-reach[0]} to {reach[1]}: the matrices repeat the columns of B, "
            "and have its rank",
            {tuple(c) for c in whole.transpose().tolist()}
            == {tuple(c) for c in table.transpose().tolist()}
            and whole.rank() == table.rank(),
            equation=4,
        )
    for d, sides, widths in ((1, (1, 2, 3, 4), (1, 3, 5, 9, 13)), (2, (1, 2, 3), (1, 3, 5, 7))):
        for side in sides:
            kernels = [_mixed(width, d) for width in widths]
            proof.check(
                f"d = {d}, P = {side}, a kernel of two entries of each side of {widths}: its B has "
                "the rank of its rows or its columns, whichever are fewer",
                all(
                    flattened(k, side).rank()
                    == min(len(patch_shifts(k, side)), 2 * (2 * side - 1) ** d)
                    for k in kernels
                ),
                equation=4,
            )


def _mixed(width: int, d: int) -> dict[Offset, list[int]]:
    """A kernel of two entries without structure: multiples of primes, modulo one."""
    taps = product(range(-(width // 2), width - width // 2), repeat=d)
    return {
        tap: [(number**3 * 17 + number * 31 + 11) % 101 + 1, (number**2 * 29 + 7) % 97 + 1]
        for number, tap in enumerate(taps)
    }


def _boxes(proof: Proof) -> None:
    side, first, second = sp.symbols("P Delta Delta'", integer=True)
    step = sp.Symbol("s", integer=True)
    proof.check(
        "the taps that two shifts have at one s are P (Δ - Δ') apart: P or more, where they differ",
        identical((side * first + step) - (side * second + step), side * (first - second)),
        equation=5,
    )
    for d, size in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 3)):
        box = list(product(range(size), repeat=d))
        ok = True
        for corner in product(range(-size, 2), repeat=d):
            moved = [tuple(a + b for a, b in zip(corner, tap, strict=True)) for tap in box]
            kernel = {tap: [number + 1] for number, tap in enumerate(moved)}
            table = flattened(kernel, size)
            ok = ok and table.rank() == table.nrows() == len(patch_shifts(kernel, size))
        proof.check(
            f"d = {d}, P = {size}: a full box of side P, at every place that has 0 near it: rank "
            "and number of shifts agree",
            ok,
            equation=5,
        )
    for size in (2, 3):
        reach = (size - 1) // 2 + 1 if size == 2 else 1
        taps = list(product(range(-reach, min(reach, size - reach - 1) + 1), repeat=2))
        kernels = [
            {tap: [1] for number, tap in enumerate(taps) if mask >> number & 1}
            for mask in range(1, 2 ** len(taps))
        ]
        ok = all(patch_shifts(kernel, size) == by_signs(kernel) for kernel in kernels)
        proof.check(
            f"P = {size}: every set of the {len(taps)} taps around 0: the shifts are those of "
            "agreeing signs",
            ok,
            equation=6,
        )


def _widths(proof: Proof) -> None:
    for size, reach in ((1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (5, (2, 2)), (7, (0, 6))):
        before, after = reach
        width = before + after + 1
        simple: dict[Offset, list[int]] = {
            (n,): [1 if n else width] for n in range(-before, after + 1)
        }
        whole = patch_matrix(simple, size, (0,), 1)
        later = [row[size - after :] for row in patch_matrix(simple, size, (1,), 1)[:after]]
        earlier = [row[:before] for row in patch_matrix(simple, size, (-1,), 1)[size - before :]]
        proof.check(
            f"one axis, P = {size}, taps {-before} to {after}, K in the middle and 1: in the own "
            "patch the diagonal outweighs its row; the others are triangles with ones on the "
            "diagonal; ranks P, m' and m",
            all(2 * row[i] > sum(row) for i, row in enumerate(whole))
            and all(row[i] == 1 and not any(row[:i]) for i, row in enumerate(later))
            and all(row[i] == 1 and not any(row[i + 1 :]) for i, row in enumerate(earlier))
            and all(
                fmpq_mat(patch_matrix(simple, size, (s,), 1)).rank() == part_rank((s,), size, reach)
                for s in (-1, 0, 1)
            ),
            equation=7,
        )
    p, m, n = sp.symbols("P m n", positive=True)
    for d in (1, 2, 3):
        total = sum(
            prod({0: p, 1: n, -1: m}[s] for s in shift) for shift in product((-1, 0, 1), repeat=d)
        )
        proof.check(
            f"d = {d}: the products add up to (P + m + m')^d",
            identical(total, (p + m + n) ** d),
            equation=8,
        )
    proof.check(
        "P = 16, a 3 x 3 kernel, three channels, heads of 64: 972 = 18^2 3, and 12 + 4 + 4 heads",
        heads_of_width(16, (1, 1), 2, 3, 64) == (972, 20) and 18**2 * 3 == 972,
        equation=9,
    )
    before, size = -1, 2
    proof.check(
        "P = 2, the pixel before the first: clamped it is pixel 0; in the clamped patch, pixel 1",
        max(before, 0) == 0 and size * max(before // size, 0) + before % size == 1,
        equation=10,
    )
