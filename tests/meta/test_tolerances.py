"""No test, and no code of a page, compares with a tolerance that somebody chose.

What counts as one is said in `tests/support/tolerances.py`, which the second half of this file
hands wrong code, and right code.
"""

from pathlib import Path

import pytest

from tests.support.ledger import ROOT
from tests.support.tolerances import findings_in, tolerance_findings

FILES = {
    path.relative_to(ROOT).as_posix(): path
    for pattern in ("tests/**/*.py", "docs/**/*.md", "*.md", "conftest.py")
    for path in sorted(ROOT.glob(pattern))
}


@pytest.mark.parametrize("name", FILES)
def test_file_has_no_tolerance_that_somebody_chose(name: str) -> None:
    findings = tolerance_findings(FILES[name])
    assert not findings, "\n".join(["", *findings])


# The check finds what is wrong --------------------------------------------------------------------

WRONG = {
    "approx": "assert y == pytest.approx(x)",
    "approx_with_zero_tolerance": "assert y == approx(x, rel=0, abs=0)",
    "isclose_of_math": "assert math.isclose(x, y, rel_tol=bound)",
    "isclose_of_a_tensor": "assert x.isclose(y).all()",
    "allclose": "assert torch.allclose(x, y, rtol=0, atol=bound)",
    "assert_close": "torch.testing.assert_close(x, y)",
    "assert_allclose": "np.testing.assert_allclose(x, y)",
    "gradcheck": "assert torch.autograd.gradcheck(f, (x,))",
    "gradcheck_of_gradients": "assert gradgradcheck(f, (x,), atol=bound)",
    "gradcheck_with_numbers": "assert gradcheck(f, (x,), atol=1e-4, rtol=0)",
    "tolerance_by_keyword": "assert near(x, y, atol=1e-4)",
    "large_tolerance_by_keyword": "assert near(x, y, rel=3)",
    "power_of_two_by_keyword": "assert near(x, y, abs=2**-20)",
    "negative_power_by_keyword": "assert near(x, y, rtol=10.0 ** -(2 + 4))",
    "small_number": "assert abs(x - y) < 1e-12",
    "small_number_first": "assert 1e-12 >= abs(x - y)",
    "small_number_in_a_chain": "assert 0 < error <= 0.005",
    "negative_number": "assert -1e-9 < x - y",
    "part_of_a_bound": "assert found <= stated * (1 + 1e-6)",
    "part_of_both_sides": "assert x - 1e-9 <= y",
    "in_a_condition": "if 1 - x < 1e-9: pass",
    "in_a_comprehension": "assert all(e < 1e-3 for e in errors)",
    "within_a_call": "assert bool((x - y).abs() < 1e-5)",
}

RIGHT = {
    "bound": "assert error <= bound",
    "roundings": "assert error <= gamma(terms, dtype) * size",
    "power_of_two": "assert error <= 2.0**-24 * size",
    "ball": "assert ball(x).overlaps(y)",
    "equal_bits": "assert torch.equal(x, y)",
    "equal_number": "assert x == 1e-6",
    "zero_keyword": "assert near(x, y, atol=0)",
    "gradcheck_with_bounds": "assert gradcheck(f, (x,), atol=bound, rtol=0)",
    "keyword_with_a_bound": "assert near(x, y, atol=bound)",
    "argument_of_a_call": "assert layer(1e-9) < 1",
    "large_number": "assert 0.5 < peak < 1",
    "zero": "assert 0.0 < x",
    "input": "x = 1e-12",
    "maximum_of_keywords": "y = f(abs=True)",
}


@pytest.mark.parametrize("code", WRONG.values(), ids=WRONG)
def test_chosen_tolerance_is_found(code: str) -> None:
    findings = findings_in(f"pass\n{code}")
    assert findings
    assert all(finding.startswith("line 2: ") for finding in findings)


@pytest.mark.parametrize("code", RIGHT.values(), ids=RIGHT)
def test_derived_bound_is_let_pass(code: str) -> None:
    assert findings_in(code) == []


def test_python_fence_of_a_page_is_read_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    fence = "```{}\nassert error < 1e-6\n```\n"
    page.write_text("\n".join(["# Title", "", fence.format("math"), fence.format("python")]))
    (finding,) = tolerance_findings(page)
    assert finding.startswith("line 8: 1e-06 in error < 1e-06")
