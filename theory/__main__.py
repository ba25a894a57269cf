"""Run every proof: `python -m theory [slug ...]`. Exits with 1 if one fails."""

import argparse
import sys
import time
from types import ModuleType

from theory import theorems
from theory.tools.proof import ProofError


def run(module: ModuleType) -> tuple[str, int, float, bool]:
    """Prove one theorem, one printed line per step: slug, number of steps, seconds, passed."""
    theorem = module.THEOREM
    source = f" ({theorem.source})" if theorem.source else ""
    print(f"{theorem.number}{source}. {theorem.title}", flush=True)
    start = time.perf_counter()
    try:
        steps = module.prove()
    except ProofError as error:
        print(f"  FAILED: {error}", flush=True)
        return theorem.slug, 0, time.perf_counter() - start, False
    seconds = time.perf_counter() - start
    for step in steps:
        print(f"  ({step.equation}) {step.name}", flush=True)
    return theorem.slug, len(steps), seconds, True


def main(arguments: list[str] | None = None) -> int:
    """Run the proofs named on the command line, or all, and print the table."""
    catalogue = {module.THEOREM.slug: module for module in theorems()}
    parser = argparse.ArgumentParser(prog="python -m theory", description="Run every proof.")
    parser.add_argument("slug", nargs="*", help="theorems to prove (default: all)")
    chosen = parser.parse_args(arguments).slug or list(catalogue)
    if unknown := [slug for slug in chosen if slug not in catalogue]:
        parser.error(f"unknown theorem {unknown[0]!r}; known: {', '.join(catalogue)}")

    rows = [run(catalogue[slug]) for slug in chosen]
    width = max((len(row[0]) for row in rows), default=len("theorem"))
    print(f"\n{'theorem':<{width}}  steps  seconds  symbolic")
    for slug, steps, seconds, passed in rows:
        print(f"{slug:<{width}}  {steps:>5}  {seconds:>7.2f}  {'passed' if passed else 'FAILED'}")
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
