"""What each stock layer carries, said once more: conditions on a convolution and its image."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.support.strategies import Case, Convolution


def usual(cases: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    """Without an output size, which a Stock does not take, and with images.

    Of an empty batch the libraries' own code cannot tell the shape.
    """
    return cases.filter(lambda case: case.output_size is None and case.x.numel() > 0)


def misses(conv: Convolution) -> bool:
    """Whether a tap is ever asked for a place beyond the image."""
    if isinstance(conv.padding, str):
        reach = [(k - 1) * r for k, r in zip(conv.kernel_size, conv.dilation, strict=True)]
        return conv.padding == "same" and any(reach)
    return any(conv.padding)


def with_zeros(case: Case) -> bool:
    """Zeros beyond the edge, or nothing."""
    return case.conv.padding_mode == "zeros" or not misses(case.conv)


def within_pixels(case: Case) -> bool:
    """Every output has the pixel to ask for it, from which offsets are counted."""
    conv = case.conv
    if conv.transposed and max(conv.stride) > 1:
        return False
    spatial = case.x.shape[-len(conv.kernel_size) :]
    outputs = case.run(conv).shape[-len(conv.kernel_size) :]
    steps = (1,) * len(spatial) if conv.transposed else conv.stride
    return all((m - 1) * s <= n - 1 for m, s, n in zip(outputs, steps, spatial, strict=True))


def by_gates(case: Case) -> bool:
    """Zeros, or replicated pixels of a square."""
    if with_zeros(case):
        return True
    rows, columns = case.x.shape[-2:]
    return case.conv.padding_mode == "replicate" and rows == columns and within_pixels(case)


def by_tables(case: Case) -> bool:
    """Zeros; or another border, of pixels alone, and reflected by one of them at most."""
    if with_zeros(case) or case.conv.padding_mode != "reflect":
        return with_zeros(case) or within_pixels(case)
    padding = case.conv.padding
    if isinstance(padding, str):  # "same" has the odd one after
        sizes = zip(case.conv.kernel_size, case.conv.dilation, strict=True)
        padding = tuple(-(-r * (k - 1) // 2) for k, r in sizes)
    return max(padding) <= 1 and within_pixels(case)


def by_buckets(case: Case) -> bool:
    """Zeros, and all taps within 7 of the one in the middle; or replicated, within 7 of 0."""
    (taps,), (dilation,) = case.conv.kernel_size, case.conv.dilation
    if with_zeros(case):
        start = (taps - 1) * dilation // 2
    elif case.conv.padding_mode == "replicate" and within_pixels(case):
        padding = case.conv.padding
        start = (taps - 1) * dilation // 2 if isinstance(padding, str) else padding[0]
    else:
        return False
    return all(abs(j * dilation - start) < 8 for j in range(taps))
