"""What scikit-image 0.26 computes where the layer computes a bilateral filter or non-local means.

T24, `docs/theorems/four_score_terms_are_four_filters.md`, its limits. scikit-image is in no extra:
without this version of it these tests are skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from constructions.filters import NonlocalMeans, bilateral

skimage: Any = pytest.importorskip("skimage")
if not skimage.__version__.startswith("0.26."):
    pytest.skip("what is told is of scikit-image 0.26", allow_module_level=True)
restoration: Any = pytest.importorskip("skimage.restoration")

Array = NDArray[np.float64]

U = float(np.finfo(np.float64).eps) / 2


def filtered(filter_: Any, image: Array) -> Array:
    """The layer's output, in float64."""
    with torch.no_grad():
        y = filter_(torch.from_numpy(image).reshape(1, 1, *image.shape))
    found: Array = y.reshape(image.shape).numpy()
    return found


@pytest.mark.parametrize("window", [5, 7, 9])
def test_weights_of_its_bilateral_filter_lean_to_a_side_for_odd_windows(window: int) -> None:
    # One pixel of 1, so mild a regard to brightness that it is none: outputs are the weights.
    spatial, tonal, reach = 1.5, 2.0**40, window // 2
    image = np.zeros((2 * window + 1,) * 2)
    image[window, window] = 1.0
    options = {"sigma_color": tonal, "sigma_spatial": spatial, "mode": "edge"}
    found = restoration.denoise_bilateral(image, win_size=window, **options)
    # Its table has window + 1 columns, from -(reach + 1) on, and is read in rows of window.
    steps = np.arange(-reach - 1, reach + 1)
    table = np.exp(-np.add.outer(steps**2, steps**2) / (2 * spatial**2)).flatten()
    read = table[: window**2].reshape(window, window)
    around = slice(window - reach, window + reach + 1)
    wanted = (read / read.sum())[::-1, ::-1]  # a query sees the pixel where its step leads
    assert (np.abs(found[around, around] - wanted) <= 4 * window**2 * U).all()
    # The largest weight is not that of the pixel itself. The layer's is, and falls on all sides.
    assert found.max() > 2 * found[window, window]
    own = filtered(bilateral(spatial, tonal, dtype=torch.float64), image)
    assert own.max() == own[window, window]
    for turned in (own.T, own[::-1], own[:, ::-1]):
        assert (np.abs(own - turned) <= 16 * image.size * U).all()


def test_its_fast_nonlocal_means_of_one_pixel_are_a_mean_that_knows_no_content() -> None:
    image = np.zeros((9, 9))
    image[:, 5:] = 1.0
    found = restoration.denoise_nl_means(image, patch_size=1, patch_distance=2, h=0.25)
    # Five columns around the middle one, of which two are 1: by definition they weigh e^-16 each.
    allowed = 64 * image.size * U
    assert abs(found[4, 4] - 2 / 5) <= allowed
    own = filtered(NonlocalMeans(1, 0.25, dtype=torch.float64), image)
    assert abs(own[4, 4] - 36 * np.exp(-16) / (45 + 36 * np.exp(-16))) <= allowed
