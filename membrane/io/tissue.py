"""Pixels that are no tissue: padding of registered slices, information bars, lost pixels.

Such pixels have one grey value over a larger square than any micrograph's noise leaves, or none.
"""

import numpy as np
from scipy import ndimage

FLAT = 17  # px, the side of a square of one grey value that is no tissue
SMALL, NEAR = 5, 65  # px, the side of one of the same value so near to it that it is none either
GAP = 33  # px; what is narrower between such squares, as the letters in a bar, is none either
STEP = 4  # px between the pixels that show most slices to have no such square
BAND = 1024  # rows that are looked at together, so that a huge slice takes little more memory
MOST = 0.8  # of the pixels of its value near a square lie in such; fewer, and it is overexposed
REACH = FLAT + SMALL + 2 * NEAR + GAP  # px; how far from a pixel it is decided what it is


def find_blank(image: np.ndarray) -> np.ndarray | None:
    """Finds the pixels of a slice that are no tissue.

    Whether a pixel is tissue depends on the `REACH` pixels around it alone, so a part of a slice
    that carries as much around it gives what the whole slice gives.

    Args:
        image: (height, width), any real dtype.

    Returns:
        bool (height, width), True = no tissue; None where all of it is tissue.
    """
    grey, lost = image, None
    if image.dtype.kind == "f":
        lost = ~np.isfinite(image)
        lost = lost if lost.any() else None
        wide = np.promote_types(image.dtype.newbyteorder("="), np.float32)
        grey = image.astype(wide, copy=False) if lost is None else np.where(lost, np.inf, image)
    if not _may_have_squares(grey):
        return lost
    blank = np.empty(image.shape, bool)
    for top in range(0, len(image), BAND):
        first = max(0, top - REACH)
        part = _find_squares(grey[first : top + BAND + REACH])
        blank[top : top + BAND] = part[top - first :][:BAND]
    blank = blank if lost is None else blank | lost
    return blank if blank.any() else None


def fill_blank(image: np.ndarray, blank: np.ndarray | None, sample: np.ndarray) -> np.ndarray:
    """Returns a slice as it is, or a copy with the mean grey value of tissue where there is none.

    Args:
        image: (height, width), any real dtype.
        blank: of `find_blank`.
        sample: grey values of tissue, as `normalization.sample_pixels` gives them.
    """
    if blank is None:
        return image
    image = image.copy()
    image[blank] = sample.mean(dtype=np.float64)
    return image


def _may_have_squares(image: np.ndarray) -> bool:
    """Tells by a few pixels whether a slice can have squares of one value, which most have not."""
    few = image[::STEP, ::STEP]
    across = few[:, 1:] == few[:, :-1]
    squares = across[1:] & across[:-1] & (few[1:, 1:] == few[:-1, 1:])
    return min(image.shape) < FLAT or bool(squares.any())


def _find_squares(image: np.ndarray) -> np.ndarray:
    """Returns where squares of one value lie, and what is narrow between them."""
    blank = _squares(image, FLAT)
    if not blank.any():
        return blank
    blank &= _count_near(blank) > MOST * _count_near(_is_alike(image, blank))
    blank |= _squares(image, SMALL) & _is_alike(image, blank)
    return ndimage.minimum_filter(ndimage.maximum_filter(blank, GAP), GAP)


def _is_alike(image: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Returns which pixels have the value of a square, bool likewise, that is near."""
    low = np.iinfo(image.dtype).min if image.dtype.kind in "iu" else -np.inf
    values = ndimage.maximum_filter(np.where(blank, image, low), NEAR)
    return ndimage.maximum_filter(blank, NEAR) & (image == values)


def _count_near(pixels: np.ndarray) -> np.ndarray:
    """Returns how many of some pixels, bool, are near to each: whole numbers, so to the bit."""
    count = pixels.astype(np.float32)
    for axis in (0, 1):
        count = np.rint(NEAR * ndimage.uniform_filter1d(count, NEAR, axis, mode="constant"))
    return count


def _squares(image: np.ndarray, side: int) -> np.ndarray:
    """Returns where squares of one value lie."""
    flat = ndimage.maximum_filter(image, side) == ndimage.minimum_filter(image, side)
    return ndimage.maximum_filter(flat, side)
