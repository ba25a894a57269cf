"""T23. Certificates compose by telescoping.

New here. The page `docs/theorems/certificates_compose_by_telescoping.md` numbers the equations.

Networks are straight-line programs over functions of which nothing is known: expressions in
sympy's undefined functions, equal only where they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import sympy as sp

from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative

__all__ = ["THEOREM", "Call", "Other", "programs", "prove", "run"]

THEOREM = Theorem(
    slug="certificates_compose_by_telescoping",
    number="T23",
    source="",
    title="Certificates compose by telescoping",
    gist="whole networks: each layer on what it receives, and what that says of the output",
    claim=(
        "Replacing layers of a network by others changes its output by a sum over the calls of "
        "these layers: the term of a call is what the rest of the original network makes of that "
        "call's error, on what the layer receives in the converted network. "
        "This is exact, whatever stands between: branches, shared modules, modules called twice, "
        "rounding. Along a chain of affine layers and of maps that bring no two numbers further "
        "apart, bounds B_l of the layers' errors and C_l of the original's own rounding give a "
        "bound on the output, element by element: d_l = B_l + |W_l| d_(l-1) + C_l. Over the reals, "
        "where C_l = 0, it is attained if no entry of a W_l is negative. To first order in the "
        "errors the sum is the derivative of the original network along them, an estimate and no "
        "bound."
    ),
    hypotheses=(
        "every module is a function: the same numbers give the same numbers, computed or real",
        "both networks call the same modules in the same order, whatever the numbers",
        "for the bound: a chain; c_l(x) = x W_l + b_l over the reals; a map between has "
        "|φ(u) - φ(v)| <= φ'(|u - v|), where φ' is the identity, a reordering or a maximum over "
        "windows",
        "for the first order: the original network has continuous second derivatives between its "
        "activations and those of the converted one",
    ),
    notation={
        "c_l, a_l": "the original layer of call l, and the one in its place",
        "y, ŷ": "output of the original network and of the converted one",
        "y^(l)": "output with the first l calls replaced; y^(0) = y, y^(L) = ŷ",
        "x̂_l, e_l": "what call l receives in the converted network; a_l(x̂_l) - c_l(x̂_l)",
        "T_l, s_l": "the rest of the original network after call l; all values before the call",
        "d_l": "bound on the difference of two activations, element by element",
        "J_l": "derivative of the output with respect to what call l returns",
    },
    proof_idea=(
        "Replace the layers one after another in the order of the calls. Two networks that differ "
        "in call l alone have the same values before it, and run the same original modules after "
        "it. The rest is the triangle inequality, and the chain rule."
    ),
    references=("Higham, Accuracy and Stability of Numerical Algorithms, ch. 1 and 3",),
    objects=("constructions.certify_layers", "constructions.NetworkCertificate"),
)


@dataclass(frozen=True)
class Call:
    """A step that is a call of a layer.

    Args:
        layer: which; one that occurs twice is called twice.
        read: the number of the value that it reads, 0 for the input.
    """

    layer: int
    read: int


@dataclass(frozen=True)
class Other:
    """A step that is anything else, of two values: a sum of branches, an activation.

    Args:
        first: the number of the one value that it reads.
        second: of the other.
    """

    first: int
    second: int


Program = tuple[Call | Other, ...]
"""Steps that each read values made before; the last value is the output."""


def programs(length: int, layers: int = 2) -> Iterator[Program]:
    """Every program of a length."""
    steps = [
        [
            *(Call(layer, read) for layer in range(layers) for read in range(made)),
            *(Other(first, second) for first in range(made) for second in range(made)),
        ]
        for made in range(1, length + 1)
    ]
    yield from product(*steps)


def _original(layer: int, value: sp.Expr) -> sp.Expr:
    return sp.Function(f"c{layer}")(value)


def _replacing(layer: int, value: sp.Expr) -> sp.Expr:
    return sp.Function(f"a{layer}")(value)


def run(
    program: Program, replaced: int, values: Sequence[sp.Expr] | None = None
) -> tuple[sp.Expr, ...]:
    """All values of a program whose first calls are replaced.

    Args:
        program: the steps.
        replaced: how many calls, in their order.
        values: those that are known already, the input first; the rest of the steps is run.
    """
    known = [sp.Symbol("x")] if values is None else list(values)
    calls = sum(isinstance(step, Call) for step in program[: len(known) - 1])
    for number in range(len(known) - 1, len(program)):
        step = program[number]
        if isinstance(step, Call):
            apply = _replacing if calls < replaced else _original
            known.append(apply(step.layer, known[step.read]))
            calls += 1
        else:
            known.append(sp.Function(f"g{number}")(known[step.first], known[step.second]))
    return tuple(known)


def prove() -> tuple[Step, ...]:
    """Prove T23: equations (2) to (8) of its page."""
    proof = Proof()
    _prove_sum(proof)
    _prove_terms(proof)
    _prove_layer(proof)
    _prove_recursion(proof)
    _prove_unrolled(proof)
    _prove_first_order(proof)
    _prove_kink(proof)
    return proof.steps


def _prove_sum(proof: Proof) -> None:
    first, last, after, total = sp.symbols("y_0 y_L y_next S")
    proof.check(
        "no call: the empty sum is the difference of the output with itself",
        identical(first - first, 0),
        equation=2,
    )
    proof.check(
        "one call more: if S = y^(L) - y^(0), then S + (y^(L+1) - y^(L)) = y^(L+1) - y^(0)",
        identical((total + (after - last)).subs(total, last - first), after - first),
        equation=2,
    )


def _prove_terms(proof: Proof) -> None:
    for length in (1, 2, 3):
        found = [_terms_agree(program) for program in programs(length)]
        proof.check(
            f"every program of {length} steps, two layers, calls and joins wired in any way: "
            "y^(l) and y^(l-1) are the original's rest, with and without the error of call l",
            all(found) and len(found) > 0,
            equation=3,
        )


def _terms_agree(program: Program) -> bool:
    converted = run(program, len(program))
    calls = [number for number, step in enumerate(program) if isinstance(step, Call)]
    for count, number in enumerate(calls, start=1):
        step = program[number]
        assert isinstance(step, Call)
        before = converted[: number + 1]  # the input and one value for each step
        received = before[step.read]
        clean = _original(step.layer, received)
        error = _replacing(step.layer, received) - clean
        # T_l knows the original's layers alone.
        with_error = run(program, 0, [*before, clean + error])[-1]
        without = run(program, 0, [*before, clean])[-1]
        right = run(program, count)[-1] == with_error, run(program, count - 1)[-1] == without
        if right != (True, True):
            return False
    return True


def _prove_layer(proof: Proof) -> None:
    ours, theirs, at_ours, at_theirs = sp.symbols("z_hat z c_hat c")
    proof.check(
        "ẑ - z is the layer's error, the convolution of the difference, and the original's own",
        identical((ours - at_ours) + (at_ours - at_theirs) + (at_theirs - theirs), ours - theirs),
        equation=4,
    )
    for inputs, outputs in product((1, 2, 3), repeat=2):
        matrix = sp.Matrix(inputs, outputs, lambda i, j: sp.Symbol(f"W_{i}{j}"))
        one, other = (sp.Matrix([sp.symbols(f"{n}0:{inputs}")]) for n in "uv")
        bias = sp.Matrix([sp.symbols(f"b0:{outputs}")])
        proof.check(
            f"an affine layer hands on the difference times W, without b: {inputs} to {outputs}",
            identical((one * matrix + bias) - (other * matrix + bias), (one - other) * matrix),
            equation=4,
        )
    moduli, more, w, u = sp.symbols("m n w u", nonnegative=True)
    proof.check(
        "one product more: |s + p| <= |s| + |p|, for any signs",
        all(
            nonnegative((moduli + w * u) - sign * (moduli + other * w * u))
            for sign, other in product((1, -1), repeat=2)
        )
        and nonnegative(moduli + more - moduli),
        equation=4,
    )


def _prove_recursion(proof: Proof) -> None:
    a, b, r, s, m = sp.symbols("a b r s m", nonnegative=True)
    proof.check(
        "ReLU: of two numbers >= 0 the difference stays, of two <= 0 it is 0, of a and -b it is "
        "a <= a + b",
        identical(sp.Max(0, b + r) - sp.Max(0, b), r)
        and identical(sp.Max(0, -b - r) - sp.Max(0, -b), 0)
        and nonnegative((a - (-b)) - (sp.Max(0, a) - sp.Max(0, -b))),
        equation=5,
    )
    # max(u1, u2) <= max(v1, v2) + m, where u_i <= v_i + m; the larger v is V, the other V - s.
    largest = sp.Symbol("V", real=True)
    proof.check(
        "a maximum moves by at most the largest move: each u_i = (V - s) + (m - r) <= V + m",
        nonnegative((largest + m) - ((largest - s) + (m - r))),
        equation=5,
    )


def _prove_unrolled(proof: Proof) -> None:
    for layers in (1, 2, 3, 4):
        weights = sp.symbols(f"w1:{layers + 1}", nonnegative=True)
        bounds = sp.symbols(f"B1:{layers + 1}", nonnegative=True)
        apart: sp.Expr = sp.Integer(0)
        for weight, bound in zip(weights, bounds, strict=True):
            apart = bound + weight * apart
        unrolled = sum(
            (bounds[k] * sp.prod(weights[k + 1 :]) for k in range(layers)), sp.Integer(0)
        )
        proof.check(
            f"{layers} layers: the recursion is the sum over layers of what the rest makes of each",
            identical(apart, unrolled),
            equation=6,
        )
        ours, theirs = sp.Symbol("x"), sp.Symbol("x")
        for weight, bound in zip(weights, bounds, strict=True):
            ours, theirs = weight * ours + bound, weight * theirs
        proof.check(
            f"{layers} layers, weights and errors not negative: the difference is the bound",
            identical(ours - theirs, apart),
            equation=6,
        )
    matrices = [sp.Matrix(2, 2, sp.symbols(f"{n}1:5", nonnegative=True)) for n in "vw"]
    errors = [sp.Matrix([sp.symbols(f"{n}1:3", nonnegative=True)]) for n in "ef"]
    start = sp.Matrix([sp.symbols("x1:3")])
    ours = (start * matrices[0] + errors[0]) * matrices[1] + errors[1]
    theirs = start * matrices[0] * matrices[1]
    proof.check(
        "two layers of two channels, no entry negative: the difference is the bound",
        identical(ours - theirs, errors[0] * matrices[1] + errors[1]),
        equation=6,
    )


def _prove_first_order(proof: Proof) -> None:
    t, x = sp.symbols("t x")
    first, second, act, join = (sp.Function(name) for name in ("c1", "c2", "g", "h"))
    e1, e2 = sp.Function("e1"), sp.Function("e2")
    networks: dict[str, Callable[..., sp.Expr]] = {
        "a chain": lambda z1, z2: z2(act(z1(x))),
        "a branch around the second call": lambda z1, z2: join(z1(x), z2(act(z1(x)))),
        "a layer called twice": lambda z1, z2: z2(z2(act(z1(x)))),
    }
    for name, network in networks.items():

        def moved(value: sp.Expr) -> sp.Expr:
            return first(value) + t * e1(value)

        def moved_too(value: sp.Expr) -> sp.Expr:
            return second(value) + t * e2(value)

        converted = network(moved, moved_too)
        along = sp.diff(converted, t).subs(t, 0).doit()
        # Each error alone, a constant of its own, at what its layer receives in the original.
        proof.check(
            f"{name}: the derivative in t at 0 is the sum of those along each call's error",
            bool(sp.expand(along - _by_calls(name, x)) == 0),
            equation=7,
        )
    # The remainder of a polynomial network is t² times a polynomial.
    p = sp.symbols("p0:4")
    chain = sum(c * (x + t * sp.Symbol("e")) ** k for k, c in enumerate(p))
    linear = sp.diff(chain, t).subs(t, 0)
    rest = sp.expand(chain - chain.subs(t, 0) - t * linear)
    proof.check(
        "a cubic tail: difference less estimate is t² times a polynomial",
        sp.rem(rest, t**2, t) == 0,
        equation=7,
    )


def _by_calls(name: str, x: sp.Symbol) -> sp.Expr:
    """The sum over calls of J_l e_l, by hand: one dummy for the error of each call."""
    first, second, act, join = (sp.Function(name) for name in ("c1", "c2", "g", "h"))
    errors = sp.symbols("s1:4")
    z1 = first(x) + errors[0]
    z2 = second(act(z1)) + errors[1]
    output = {
        "a chain": z2,
        "a branch around the second call": join(z1, z2),
        "a layer called twice": second(z2) + errors[2],
    }[name]
    at = dict.fromkeys(errors, 0)
    clean1 = first(x)
    clean2 = second(act(clean1))
    received = x, act(clean1), clean2
    values = [sp.Function("e1")(received[0]), sp.Function("e2")(received[1])]
    values.append(sp.Function("e2")(received[2]))
    return sum(
        (
            sp.diff(output, error).subs(at).doit() * value
            for error, value in zip(errors, values, strict=True)
        ),
        sp.Integer(0),
    )


def _prove_kink(proof: Proof) -> None:
    half = sp.Rational(1, 2)
    clean, moved = sp.Max(0, -half), sp.Max(0, -half + 1)
    proof.check(
        "ReLU at -1/2 has the derivative 0; an error of 1 there changes the output by 1/2",
        bool(clean == 0) and bool(moved == half),
        equation=8,
    )
