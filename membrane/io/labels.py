"""Labels and maps as files have them, and whether labels fit their slices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from membrane.errors import UserError
from membrane.io.normalization import to_grey

INTERIOR = 255  # in label and mask files; membrane is 0
MIN_CONTRAST = (
    0.1  # of the grey scale, by which cells are brighter than membrane where a label fits
)


def to_interior(label: np.ndarray, where: str) -> np.ndarray:
    """Returns a label as bool, True = cell interior.

    Args:
        label: (height, width) of 0 = membrane and one of 1, 255, 65535 or True = interior.
        where: what to call it in the error.

    Raises:
        UserError: the label is not binary.
    """
    values = np.unique(to_grey(label))
    two_numbers = len(values) == 2 and values[0] != 0
    if len(values) > 2 or two_numbers or not set(values.tolist()) <= {0, 1, 255, 65535}:
        shown = ", ".join(str(value) for value in values[:4]) + (", …" if len(values) > 4 else "")
        raise UserError(
            f"{where}: not a binary label, it has the values {shown}; "
            "expected 0 = membrane and one of 1, 255 or 65535 = cell interior"
        )
    return to_grey(label) > 0


def to_mask_bytes(mask: np.ndarray) -> np.ndarray:
    """Turns a mask, bool, into what is written, in place: uint8, 0 = membrane, 255 = interior."""
    written = mask.view(np.uint8)
    written *= np.uint8(INTERIOR)
    return written


def to_probability(image: np.ndarray, where: str) -> np.ndarray:
    """Returns a stored map of P(interior) as float64 in [0, 1].

    Args:
        image: (height, width) of bool, uint8, uint16, or float in [0, 1].
        where: what to call it in the error.

    Raises:
        UserError: another dtype, or floats beyond [0, 1].
    """
    grey = to_grey(image)
    if grey.dtype.kind == "f" and 0 <= grey.min() and grey.max() <= 1:
        return grey.astype(np.float64)
    if grey.dtype not in (np.bool_, np.uint8, np.uint16):
        raise UserError(
            f"{where}: no map of P(interior): {grey.dtype} from {grey.min()} to {grey.max()}; "
            "expected 8-bit, 16-bit, or floats in [0, 1]"
        )
    return grey / (1 if grey.dtype == np.bool_ else np.iinfo(grey.dtype).max)


def check_label_contrast(
    names: Sequence[str], images: Sequence[np.ndarray], labels: Sequence[np.ndarray], where: Path
) -> None:
    """Refuses labels that are inverted, or all of a neighbouring slice: membrane must be dark.

    On ISBI-2012 cells are brighter than membrane by 0.21 of the grey scale with the slice's own
    label, by 0.05 with its neighbour's.

    Args:
        names: of the slices.
        images: float32 (height, width), normalised.
        labels: bool (height, width) each, True = cell interior.
        where: they come from.

    Raises:
        UserError: which label, or all of them.
    """
    if not any(label.any() for label in labels) or all(map(np.all, labels)):
        raise UserError(f"{where}: one class in all labels; expected 0 = membrane, 255 = interior")
    count = len(names)
    own = [_contrast(images[i], labels[i]) for i in range(count)]
    mean = _mean(own)
    if mean < -MIN_CONTRAST / 2 and np.mean([label.mean() for label in labels]) < 0.5:
        raise UserError(
            f"{where}: inverted: what they call membrane is bright, and most of each slice; "
            "expected 0 = membrane, 255 = interior"
        )
    for step, which in ((1, "before"), (-1, "after")):
        near = [
            _contrast(images[i], labels[i + step])
            for i in range(max(0, -step), min(count, count - step))
            if images[i].shape == labels[i + step].shape
        ]
        if _mean(near) > max(2 * mean, MIN_CONTRAST):
            raise UserError(
                f"{where}: each label fits the slice {which} its own; are they shifted?"
            )
    for name, contrast in zip(names, own, strict=True):
        if abs(mean) > MIN_CONTRAST and -contrast * np.sign(mean) > abs(mean) / 2:
            raise UserError(f"{where / name}: inverted, unlike the others")


def _mean(contrasts: Sequence[float]) -> float:
    """Returns their mean, 0 if there is none."""
    known = [contrast for contrast in contrasts if not np.isnan(contrast)]
    return float(np.mean(known)) if known else 0.0


def _contrast(image: np.ndarray, label: np.ndarray) -> float:
    """Returns by how much cells are brighter than membrane; NaN where there is only one of them."""
    if label.all() or not label.any():
        return np.nan
    return float(image[label].mean() - image[~label].mean())
