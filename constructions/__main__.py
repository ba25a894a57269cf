"""`python -m constructions`, the main job: a trained CNN becomes attention, with certificates."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from constructions.evaluation import EVALUATIONS
from constructions.formats import FORMATS

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FORMATS}
SEEDS = 2**32
EXTRA = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}


class Parser(argparse.ArgumentParser):
    """Reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The options of the main job."""
    options = Parser(
        prog="python -m constructions",
        description=(
            "Train a small CNN on handwritten digits, replace each of its convolutions by "
            "attention, certify every layer on all test images and draw the heads of the first."
        ),
        epilog="Exit code: 0; 1 if an error exceeds its bound; 2 if the job cannot run.",
    )
    options.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="where both networks run; training is on the CPU (default: %(default)s)",
    )
    options.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="format of both networks; training is in float32 (default: %(default)s)",
    )
    options.add_argument(
        "--sharpness",
        type=_sharpness,
        metavar="NUMBER",
        help="gap in score between a head's key and any other, the paper's alpha (default: "
        "saturated, the gap from which weights are exactly one-hot)",
    )
    options.add_argument(
        "--evaluation",
        choices=("auto", *EVALUATIONS),
        default="dense",
        help="how attention is computed (default: %(default)s)",
    )
    options.add_argument(
        "--output",
        type=_folder,
        default="attention-constructions-output",
        metavar="DIR",
        help="folder for the figure, heads.png (default: %(default)s)",
    )
    options.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the split and the training (default: %(default)s)",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        0, or 1 if an error exceeds its bound.

    Raises:
        SystemExit: with code 2 for a bad argument, or where the extra `demo` is not installed.
    """
    options = parser()
    chosen = options.parse_args(argv)
    dtype = DTYPES[chosen.dtype]
    try:
        torch.zeros(1, dtype=dtype, device=chosen.device)
    except (RuntimeError, TypeError):  # float64 on mps
        options.error(f"argument --dtype: {chosen.dtype}; accepted: a format of {chosen.device}'s")
    try:
        from constructions.demo.job import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        options.error(
            f"{EXTRA[package]} is not installed; accepted: an environment with the extra demo, "
            "by pip install 'attention-constructions[demo]'"
        )
    holds = run(
        device=chosen.device,
        dtype=dtype,
        sharpness=chosen.sharpness,
        evaluation=chosen.evaluation,
        output=chosen.output,
        seed=chosen.seed,
    )
    return 0 if holds else 1


def _device(text: str) -> torch.device:
    kinds = ["cpu"]
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        kinds += [accelerator.type]
        kinds += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    if text not in kinds:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted here: {', '.join(kinds)}")
    return torch.device(text)


def _sharpness(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: a positive, finite number")
    return value


def _seed(text: str) -> int:
    if not (text.isdecimal() and int(text) < SEEDS):
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: an integer from 0 to {SEEDS - 1}")
    return int(text)


def _folder(text: str) -> Path:
    """The folder, made now: nobody should wait for a network that cannot be drawn."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} ({error.strerror}); accepted: a folder, or where one can be made"
        ) from error
    return path


if __name__ == "__main__":
    sys.exit(main())
