"""What a new process runs to find the memory of one contender: `python -m benchmarks.memory`.

    python -m benchmarks.memory CONTENDER CASE

The case is JSON, the answer too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from benchmarks.contenders import MAKERS, Case
from benchmarks.protocol import Device, Memory, memory_in_a_new_process, memory_of


def memory(name: str, case: Case) -> Memory:
    """The memory of a forward pass; on CUDA of this process, whose allocator counts for itself."""
    if case.device == "cpu":
        return memory_in_a_new_process(__name__, name, json.dumps(asdict(case)))
    return measured(name, case)


@torch.no_grad()
def measured(name: str, case: Case) -> Memory:
    """The same, in this process."""
    module = MAKERS[name](case.convolution())
    assert module is not None
    x = case.image()
    module(case.smaller().image())  # what torch sets up once
    return memory_of(lambda: module(x), Device(case.device))


def main(name: str, encoded: str) -> None:
    """Print what is measured."""
    given = json.loads(encoded)
    found = measured(name, Case(**{**given, "size": tuple(given["size"])}))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
