"""Runs the Python fences of every Markdown page as tests, and loads the ledger."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_plugins = ("pytester", "tests.support.ledger")

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()
