"""What a theorem's page says that its machine checks, for its test to hold the proof to."""

import re
from pathlib import Path

from tests.support.layout import normalised, page_of, read

ROOT = Path(__file__).parents[2]

RANGE = re.compile(r"\[?\((\d+)\)(?:\]\(#eq-\1\))?(?: to \[?\((\d+)\))?")
"""An equation, or a range of them; each a link or plain."""


def checked_equations(slug: str) -> set[int]:
    """The equations named in the first sentence of the page's section "Machine check".

    A proof that discharges another set of them has lost or gained an equation without its page.
    """
    section = read(page_of(slug, ROOT)).partition("\n## Machine check\n")[2]
    paragraph = section.strip().partition("\n\n")[0]
    ending = re.search(r"[.:;](?= |$)", normalised(paragraph))
    assert ending is not None, f"the page of {slug} does not say what is checked"
    sentence = normalised(paragraph)[: ending.start()]
    return {
        number
        for first, last in RANGE.findall(sentence)
        for number in range(int(first), int(last or first) + 1)
    }
