"""Whether labels fit their slices: what they call membrane must be darker than cells."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slices import UserError

FITS = 0.1  # of the grey scale, by which cells are brighter than membrane where a label fits


def check_fit(
    names: Sequence[str], images: Sequence[np.ndarray], labels: Sequence[np.ndarray], where: Path
) -> None:
    """Refuses labels that are inverted, or all of a neighbour: what they call membrane must show.

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
    count = len(names)
    own = [_contrast(images[i], labels[i]) for i in range(count)]
    mean = _mean(own)
    if mean < -FITS / 2 and np.mean([label.mean() for label in labels]) < 0.5:
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
        if _mean(near) > max(2 * mean, FITS):
            raise UserError(
                f"{where}: each label fits the slice {which} its own; are they shifted?"
            )
    for name, contrast in zip(names, own, strict=True):
        if abs(mean) > FITS and -contrast * np.sign(mean) > abs(mean) / 2:
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
