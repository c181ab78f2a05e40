"""Labels and maps as files store them, and whether labels fit their slices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from membrane.errors import UserError
from membrane.io.normalization import to_grey

INTERIOR = 255  # in label and mask files; membrane is 0
MIN_CONTRAST = 0.1  # of the grey scale; cells are brighter by this where a label fits


def to_interior(label: np.ndarray, where: str) -> np.ndarray:
    """Returns a label as bool (height, width), True = cell interior.

    It holds 0 = membrane and one of 1, 255, 65535 or True = interior; errors call it `where`.

    Raises:
        UserError: the label is not binary.
    """
    values = np.unique(to_grey(label))
    marked = set(values.tolist()) - {0}
    if len(marked) > 1 or not marked <= {1, 255, 65535}:
        shown = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
        raise UserError(
            f"{where}: not a binary label, it has the values {shown}; "
            "expected 0 = membrane and one of 1, 255 or 65535 = cell interior"
        )
    return to_grey(label) > 0


def to_mask_bytes(mask: np.ndarray) -> np.ndarray:
    """Turns a bool mask, in place, into what is written: uint8, 0 = membrane, 255 = interior."""
    written = mask.view(np.uint8)
    written *= np.uint8(INTERIOR)
    return written


def to_probability(image: np.ndarray, where: str) -> np.ndarray:
    """Returns a stored map of P(interior) as float64 (height, width) in [0, 1].

    It is stored as bool, uint8, uint16, or floats in [0, 1]; errors call it `where`.

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
        images: float32 (height, width) each, normalised.
        labels: bool (height, width) each, True = cell interior.
        where: the file or folder of the labels.

    Raises:
        UserError: which label is wrong, or that all are.
    """
    if not any(map(np.any, labels)) or all(map(np.all, labels)):
        raise UserError(f"{where}: one class in all labels; expected 0 = membrane, 255 = interior")
    own = _contrasts(images, labels)
    mean = _mean(own)
    if mean < -MIN_CONTRAST / 2 and np.mean([label.mean() for label in labels]) < 0.5:
        raise UserError(
            f"{where}: inverted: what they call membrane is bright, and most of each slice; "
            "expected 0 = membrane, 255 = interior"
        )
    neighbours = {"before": (images[:-1], labels[1:]), "after": (images[1:], labels[:-1])}
    for which, pairs in neighbours.items():
        if _mean(_contrasts(*pairs)) > max(2 * mean, MIN_CONTRAST):
            raise UserError(
                f"{where}: each label fits the slice {which} its own; are they shifted?"
            )
    for name, contrast in zip(names, own, strict=True):
        if abs(mean) > MIN_CONTRAST and -contrast * np.sign(mean) > abs(mean) / 2:
            raise UserError(f"{where / name}: inverted, unlike the others")


def _contrasts(images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Returns by how much cells are brighter than membrane; NaN where that is not defined."""
    contrasts = np.full(len(images), np.nan)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if image.shape == label.shape and 0 < label.mean() < 1:
            contrasts[i] = image[label].mean() - image[~label].mean()
    return contrasts


def _mean(contrasts: np.ndarray) -> float:
    """Returns the mean of those that are defined, 0 if there is none."""
    defined = contrasts[~np.isnan(contrasts)]
    return defined.mean() if defined.size else 0.0
