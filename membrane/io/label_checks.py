"""Whether labels fit their slices, as far as pixels tell: inverted, turned, shifted, of others."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage.measure import euler_number

from membrane.errors import UserError

MIN_CONTRAST = 0.1  # of the grey scale; cells are brighter by this where a label fits
NO_CONTRAST = 0.02  # labels that fit no better than this belong to other slices
ORDER_SAMPLE = 25  # slices that are compared with each other's labels, where their own do not fit
TURNS = {  # that a label can have suffered, and what undoes them
    "transposed": np.transpose,
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 90 degrees clockwise": lambda label: np.rot90(label, 1),
    "turned by 180 degrees": lambda label: np.rot90(label, 2),
    "turned by 90 degrees anticlockwise": lambda label: np.rot90(label, 3),
    "transposed and turned by 180 degrees": lambda label: np.rot90(label, 2).T,
}


def check_polarity(interiors: Sequence[np.ndarray], where: Path) -> None:
    """Refuses labels or masks whose membrane and interior are exchanged.

    Membrane is a net whose meshes are the cells: what is interior has more pieces than holes. It is
    judged where less than half of all pixels are interior, as in hardly any that is right.

    Args:
        interiors: bool (height, width) each, True = cell interior.
        where: the file or folder.

    Raises:
        UserError: they are exchanged.
    """
    sparse = np.mean([interior.mean() for interior in interiors]) < 0.5
    if sparse and sum(euler_number(interior, 1) for interior in interiors) < 0:
        raise UserError(f"{where}: inverted, as it seems; expected 0 = membrane, 255 = interior")


def check_label_contrast(
    names: Sequence[str],
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    where: Path,
    known: Sequence[np.ndarray | None] | None = None,
) -> None:
    """Refuses labels that do not belong to their slices as they are: membrane must be dark.

    On ISBI-2012 cells are brighter than membrane by 0.21 of the grey scale with the slice's own
    label, by 0.05 with its neighbour's, by less than 0.012 with any that is turned.

    Args:
        names: of the slices.
        images: float32 (height, width) each, normalised.
        labels: bool (height, width) each, True = cell interior.
        where: the file or folder of the labels.
        known: bool (height, width) each, True = labelled; None where every pixel is.

    Raises:
        UserError: which label is wrong, or that all are, and what they have suffered.
    """
    known = known or [None] * len(labels)
    if not any(map(np.any, labels)) or not any(map(np.any, _membranes(labels, known))):
        raise UserError(f"{where}: one class in all labels; expected 0 = membrane, 255 = interior")
    own = _contrasts(images, labels, known)
    mean = _mean(own)
    if mean < -MIN_CONTRAST / 2 and np.mean([label.mean() for label in labels]) < 0.5:
        raise UserError(
            f"{where}: inverted: what they call membrane is bright, and most of each slice; "
            "expected 0 = membrane, 255 = interior"
        )
    shifts = {"before": (np.s_[:-1], np.s_[1:]), "after": (np.s_[1:], np.s_[:-1])}
    for which, (seen, of) in shifts.items():
        if _mean(_contrasts(images[seen], labels[of], known[of])) > max(2 * mean, MIN_CONTRAST):
            raise UserError(
                f"{where}: each label fits the slice {which} its own; are they shifted?"
            )
    if abs(mean) < MIN_CONTRAST:
        for suffered, undo in TURNS.items():
            turned = (
                [None if one is None else undo(one) for one in each] for each in (labels, known)
            )
            if _mean(_contrasts(images, *turned)) > max(2 * abs(mean), MIN_CONTRAST):
                raise UserError(f"{where}: the labels are {suffered}; turn them back")
        few = range(min(len(labels), ORDER_SAMPLE))
        table = [_contrasts([images[i]] * len(labels), labels, known) for i in few]
        best = np.nan_to_num(np.array(table)[:, : len(few)]).max(axis=0)
        if best.mean() > max(2 * abs(mean), MIN_CONTRAST):
            raise UserError(f"{where}: these labels fit the slices in another order")
    if abs(mean) < NO_CONTRAST:
        raise UserError(
            f"{where}: what these labels call membrane is as bright as the rest of the slices; do "
            "they belong to others?"
        )
    for name, contrast in zip(names, own, strict=True):
        if abs(mean) > MIN_CONTRAST and -contrast * np.sign(mean) > abs(mean) / 2:
            raise UserError(f"{where / name}: inverted, unlike the others")


def _membranes(labels: Sequence, known: Sequence) -> list[np.ndarray]:
    """Returns where membrane is labelled."""
    pairs = zip(labels, known, strict=True)
    return [~label if one is None else ~label & one for label, one in pairs]


def _contrasts(images: Sequence, labels: Sequence, known: Sequence) -> np.ndarray:
    """Returns by how much cells are brighter than membrane; NaN where that is not defined."""
    contrasts = np.full(len(images), np.nan)
    triples = zip(images, labels, _membranes(labels, known), strict=True)
    for i, (image, label, membrane) in enumerate(triples):
        if image.shape == label.shape and label.any() and membrane.any():
            contrasts[i] = image[label].mean() - image[membrane].mean()
    return contrasts


def _mean(contrasts: np.ndarray) -> float:
    """Returns the mean of those that are defined, 0 if there is none."""
    defined = contrasts[~np.isnan(contrasts)]
    return defined.mean() if defined.size else 0.0
