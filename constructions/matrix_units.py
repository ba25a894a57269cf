"""Units: how a device forms sums of products, as far as torch's flags allow.

A float32 convolution on a GPU is by default not made of float32 products: torch lets the matrix
units round its operands to TF32, and they truncate where they add. `products_of` says, for an
operation, a format, a device and the flags, what may happen at worst; `Products` what that costs.
Theorem: `layer_error_is_certified`, equations 17 to 24.

NNPACK, which torch takes for convolutions on a CPU without oneDNN, forms no such sums at all:
`may_transform` says where.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from constructions.formats import smallest_normal, smallest_subnormal, unit_roundoff

Operation: TypeAlias = Literal["matmul", "convolution", "attention", "any"]
"""What torch is asked for: products of matrices, convolutions, its attention, or all of them."""

PRECISION: Mapping[str, int] = {"ieee": 24, "tf32": 11, "bf16": 8}
"""Significant bits that are left of a float32 operand, by torch's name of the setting."""

UNKNOWN = "bf16"
"""What is assumed of a setting or a device that this file does not know."""


IMAGES_TRANSFORMED = 16
"""Images from which on torch may hand a convolution to NNPACK; fewer it never does."""


@dataclass(frozen=True)
class Products:
    """Sums of products a_i b_i: |computed - exact| <= growth(n) Σ|a_i b_i| + lost(n, ...).

    Args:
        sums: the format that they are added in.
        precision: significant bits that an operand keeps.
        rounding: v, how much rounding an operand to them may change it, relatively; 0 where
            operands are not rounded.
        step: what one addition may change, relatively to the moduli of what it adds.
        steps: how many such changes there are to a product.
        underflow: what underflow may take from a number.
    """

    sums: torch.dtype
    precision: int
    rounding: float
    step: float
    steps: int
    underflow: float

    @classmethod
    def plain(cls, sums: torch.dtype) -> Products:
        """Products and sums rounded to nearest, in any order, with gradual underflow."""
        return cls(
            sums=sums,
            precision=_precision(sums),
            rounding=0.0,
            step=unit_roundoff(sums),
            steps=1,
            underflow=smallest_subnormal(sums),
        )

    @classmethod
    def unit(cls, sums: torch.dtype, precision: int) -> Products:
        """A matrix unit: operands cut to a precision, sums of many addends at once, truncated.

        Nothing is assumed of the direction of a rounding, of the number of addends or of their
        order, and subnormal numbers may be flushed to zero.
        """
        return cls(
            sums=sums,
            precision=precision,
            rounding=2.0 ** (1 - precision) if precision < _precision(sums) else 0.0,
            step=2 * unit_roundoff(sums),
            steps=2,
            underflow=smallest_normal(sums),
        )

    @classmethod
    def split(cls) -> Products:
        """Float32 operands as sums of two TF32 numbers, of whose four products three are formed."""
        once = cls.unit(torch.float32, PRECISION["tf32"])
        return cls(
            sums=torch.float32,
            precision=once.precision,
            rounding=2 * once.rounding**2,
            step=once.step,
            steps=3 * once.steps + 1,
            underflow=once.underflow,
        )

    def or_else(self, other: Products) -> Products:
        """What covers both, for sums of one format."""
        return Products(
            sums=self.sums,
            precision=min(self.precision, other.precision),
            rounding=max(self.rounding, other.rounding),
            step=max(self.step, other.step),
            steps=max(self.steps, other.steps),
            underflow=max(self.underflow, other.underflow),
        )

    @property
    def rounds(self) -> bool:
        """Whether an operand of the format of the sums is rounded before it is multiplied."""
        return self.rounding > 0

    @property
    def exact_to(self) -> int:
        """Integers of at most this modulus are operands that nothing is taken from."""
        return 1 << self.precision

    def operand(self, stored: torch.dtype) -> float:
        """v for an operand that is stored in a format: 0 if it has no more bits than are kept."""
        return self.rounding if _precision(stored) > self.precision else 0.0

    def growth(self, terms: int, *stored: torch.dtype) -> float:
        """How far a sum of so many products may be off, relatively to the sum of their moduli.

        Args:
            terms: n.
            stored: the formats that the operands are stored in, one for each time that one is
                rounded; both in that of the sums, if left out.
        """
        rounded = stored or (self.sums, self.sums)
        operands = math.fsum(math.log1p(self.operand(dtype)) for dtype in rounded)
        return grown(operands + self.steps * terms * math.log1p(self.step))

    def lost(self, terms: int, largest: float) -> float:
        """What underflow may take from a sum of so many products.

        Args:
            terms: n.
            largest: the largest moduli of both operands, added.
        """
        if self.steps == 1:
            # Each product may lose half of the smallest number, and roundings enlarge what is lost.
            return terms * self.underflow * max(1.0, (1 + self.growth(terms)) / 2 * (1 + 2**-40))
        formed = terms * ((self.steps + 1) // 2)
        each = self.underflow * (3 + 2 * (largest + self.underflow) * (1 + self.rounding))
        return formed * each * (1 + self.growth(terms)) * (1 + 2**-40)


@dataclass(frozen=True)
class Settings:
    """What torch's flags, and the environment, let become of a float32 operand.

    Each is one of `PRECISION`, or "f16", the conversion that oneDNN may be told to make.

    Args:
        cuda_matmul: in products of matrices on a GPU.
        cuda_convolution: in convolutions by cuDNN.
        cpu_matmul: in products of matrices by oneDNN.
        cpu_convolution: in convolutions by oneDNN.
    """

    cuda_matmul: str = "ieee"
    cuda_convolution: str = "tf32"
    cpu_matmul: str = "ieee"
    cpu_convolution: str = "ieee"

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Those of this process, now; the environment is that in which it was started.

        `fp32_precision` of a single operation is what the kernels ask, and follows the older flags
        (`allow_tf32`, `set_float32_matmul_precision`) when these are set.
        """
        gpu, cpu = torch.backends.cuda, torch.backends.mkldnn
        on_gpu = "ieee" if environment.get("NVIDIA_TF32_OVERRIDE", "0") in ("", "0") else "tf32"
        forced = environment.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0") in ("", "0")
        of_blas = "ieee" if forced else "tf32"
        mode = "strict"
        for name in ("DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"):
            mode = environment.get(name, mode).lower()
        by_onednn = {"strict": "ieee", "any": "f16"}.get(mode, mode)
        # The flag of Intel's GPUs, None elsewhere.
        older = "tf32" if getattr(cpu, "allow_tf32", None) else "ieee"
        return cls(
            cuda_matmul=_coarsest(_flag(gpu, "matmul"), on_gpu, of_blas),
            cuda_convolution=_coarsest(_flag(torch.backends.cudnn, "conv"), on_gpu),
            cpu_matmul=_coarsest(_flag(cpu, "matmul"), by_onednn, older),
            cpu_convolution=_coarsest(_flag(cpu, "conv"), by_onednn, older),
        )


def products_of(
    operation: Operation,
    dtype: torch.dtype,
    device_type: str,
    settings: Settings | None = None,
) -> Products:
    """The worst way in which torch may form products of operands of a format on a device.

    The layer asks for float32 or float64 alone: it casts operands of half precision before it
    multiplies, so that the flags for sums in half precision do not concern it.

    Args:
        operation: what torch is asked for. A convolution may be made a product of matrices, so the
            flags of both count; "any" is for modules of which nothing is known, whose sums of half
            precision may run in half precision.
        dtype: of the operands, as they are handed to torch.
        device_type: such as "cpu" or "cuda".
        settings: None for those of this process, now.

    Raises:
        ValueError: the settings allow oneDNN to convert to float16, whose range is smaller.
    """
    if dtype == torch.float64:
        return Products.plain(dtype)
    on_cpu = device_type in ("cpu", "mps", "meta")
    if dtype != torch.float32:
        # On CPUs too kernels multiply in bfloat16 by instructions that flush subnormal numbers.
        by_units = device_type == "cuda" or dtype == torch.bfloat16
        if operation == "attention" and by_units:
            return Products.unit(torch.float32, _precision(dtype))
        return Products.plain(dtype) if on_cpu else Products.unit(dtype, _precision(dtype))
    allowed = _allowed(operation, device_type, Settings.current() if settings is None else settings)
    if allowed == "f16":
        raise ValueError(
            "oneDNN's default math mode allows float16; accepted: strict, bf16, tf32 "
            "(the variable DNNL_DEFAULT_FPMATH_MODE)"
        )
    formed = Products.plain(dtype)
    if allowed != "ieee":
        formed = Products.unit(dtype, PRECISION[allowed])
    if operation in ("attention", "any") and device_type == "cuda":
        # The memory-efficient kernel splits float32, whatever the flags.
        formed = formed.or_else(Products.split())
    return formed


def may_transform(images: int, dtype: torch.dtype, device_type: str) -> bool:
    """Whether torch may compute a convolution by Winograd's or Fourier's transform, on a CPU.

    Without oneDNN it hands convolutions of 16 images and more to NNPACK. What a transform errs by
    is relative to all that its tile holds, so no bound on sums of products speaks of it, and it is
    not exact on integers. torch asks for more (one or two dimensions, no dilation, kernels of at
    most 16 a side), which is not repeated here. On a GPU nothing says what cuDNN chooses.

    Args:
        images: N.
        dtype: of the operands.
        device_type: such as "cpu" or "cuda".
    """
    if images < IMAGES_TRANSFORMED or dtype != torch.float32 or device_type != "cpu":
        return False
    by_onednn = torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()
    return not by_onednn and torch._C._get_nnpack_enabled()


def _allowed(operation: Operation, device_type: str, settings: Settings) -> str:
    if device_type in ("mps", "meta"):
        return "ieee"
    if device_type == "cuda":
        matmul, convolution = settings.cuda_matmul, settings.cuda_convolution
    elif device_type in ("cpu", "xpu"):
        matmul, convolution = settings.cpu_matmul, settings.cpu_convolution
    else:
        return UNKNOWN
    return _coarsest(matmul, *([convolution] if operation in ("convolution", "any") else []))


def _flag(backend: object, operation: str) -> str:
    """torch's `fp32_precision` of one operation, its defaults resolved."""
    return str(getattr(backend, operation).fp32_precision)


def _coarsest(*names: str) -> str:
    """The setting of fewest bits; "none" is torch's word for its default, which is to round not."""
    known = ["ieee" if name == "none" else name for name in names]
    if "f16" in known:
        return "f16"
    return min((n if n in PRECISION else UNKNOWN for n in known), key=lambda n: PRECISION[n])


def _precision(dtype: torch.dtype) -> int:
    """Significant bits, the hidden one included."""
    return round(-math.log2(unit_roundoff(dtype)))


def grown(exponent: float) -> float:
    """e^z - 1 for z >= 0, rounded up; inf where it may exceed every float64.

    The exponential amplifies the relative error of its argument by 1 + z.
    """
    if exponent >= 700:
        return math.inf
    return math.expm1(exponent) * (1 + (1 + exponent) * 2**-46)
