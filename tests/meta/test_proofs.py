"""What a page lists as checked by machine is what its proof discharges, equation by equation."""

import pytest

from tests.support.proofs import claimed_equations, claimed_in, discharged_equations
from theory import theorems
from theory.tools.proof import Step

MODULES = {module.THEOREM.slug: module for module in theorems()}


@pytest.mark.parametrize("slug", MODULES)
def test_page_lists_the_equations_that_its_proof_discharges(slug: str) -> None:
    assert discharged_equations(MODULES[slug].prove()) == claimed_equations(slug)


# The list is read as it stands --------------------------------------------------------------------

PAGE = """# T4. Sums commute

[(8)](#eq-8) is not in the section.

## Machine check

[`theory/sums.py`](../../theory/sums.py) checks {list}. Of [(7)](#eq-7) it says how.

## Limits

None of [(9)](#eq-9).
"""


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("[(2)](#eq-2) to [(5)](#eq-5)", {2, 3, 4, 5}),
        ("[(2)](#eq-2), [(4)](#eq-4) and [(6)](#eq-6)", {2, 4, 6}),
        ("[(1)](#eq-1) to [(2)](#eq-2) and [(12)](#eq-12) to [(13)](#eq-13)", {1, 2, 12, 13}),
        ("[(3)](#eq-3) for\nevery key", {3}),
    ],
)
def test_equations_of_the_first_sentence_are_read(listed: str, found: set[int]) -> None:
    assert claimed_in(PAGE.format(list=listed)) == found


@pytest.mark.parametrize(
    "page",
    [
        PAGE.format(list="(2) to (5)"),
        PAGE.format(list="[(2)](#eq-3)"),
        PAGE.format(list="[(2)](sums.md#eq-2)"),
        PAGE.replace("## Machine check", "## Machine").format(list="[(2)](#eq-2)"),
        "",
    ],
    ids=["no links", "another number", "another page", "no section", "no page"],
)
def test_page_that_lists_no_equation_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="lists no equation"):
        claimed_in(page)


def test_equation_that_lost_all_its_steps_is_missed() -> None:
    steps = [Step("one", 2), Step("another", 2), Step("third", 4)]
    claimed = claimed_in(PAGE.format(list="[(2)](#eq-2) to [(4)](#eq-4)"))
    assert claimed - discharged_equations(steps) == {3}
