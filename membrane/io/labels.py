"""Labels and maps as files store them, and whether labels fit their slices."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import euler_number
from skimage.measure import label as connected_components

from membrane.errors import UserError
from membrane.io.normalization import to_grey

INTERIOR = 255  # in label and mask files; membrane is 0
MIN_CONTRAST = 0.1  # of the grey scale; cells are brighter by this where a label fits
NO_CONTRAST = 0.02  # labels that fit no better than this belong to other slices
ORDER_SAMPLE = 25  # slices that are compared with each other's labels, where their own do not fit
CELL_PARTS, CELL_AREA = 5, 32  # numbers of cells have fewer parts, and px in each, on average
SUFFIX = re.compile(  # of a file's name, or of that of a stack's page, which ends in its number
    r"[-_ .]+(masks?|labels?|seg|segmentation|gt|membranes?|cells?)(?=(\[\d+\])?$)", re.IGNORECASE
)
TURNS = {  # that a label can have suffered, and what undoes them
    "transposed": np.transpose,
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 90 degrees clockwise": lambda label: np.rot90(label, 1),
    "turned by 180 degrees": lambda label: np.rot90(label, 2),
    "turned by 90 degrees anticlockwise": lambda label: np.rot90(label, 3),
    "transposed and turned by 180 degrees": lambda label: np.rot90(label, 2).T,
}


def read_labels(
    labels: dict[str, np.ndarray], ignore: int | None = None
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Returns `read_label` of all labels of a data set, by what errors call them.

    Where 255 is not labelled in one, beside 0 and 1, it is not in any.

    Raises:
        UserError: another has 0 and 255, as if that were interior there, or as for `read_label`.
    """
    if ignore is None:
        values = {where: np.unique(label).tolist() for where, label in labels.items()}
        partly = next((where for where, own in values.items() if own == [0, 1, 255]), None)
        binary = next((where for where, own in values.items() if own == [0, 255]), None)
        if partly and binary:
            raise UserError(
                f"{binary}: has 0 and 255, and {Path(partly).name} 0, 1 and 255, where 255 is not "
                "labelled; is it so in all? Then --ignore 255, else save interior as 1"
            )
        ignore = 255 if partly else None
    return [read_label(label, where, ignore) for where, label in labels.items()]


def read_label(
    label: np.ndarray, where: str, ignore: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Tells what a label says of each pixel.

    It is binary, 0 = membrane and one of 1, 255, 65535 or True = interior; or it numbers the cells,
    and membrane is 0 and where two numbers touch. Pixels of the value `ignore` are not labelled;
    neither are those of -1, in whole numbers without sign their highest from 32 bits on, of 255
    beside 0 and 1, and those that are NaN.

    Args:
        label: (height, width[, 3]) as a file has it.
        where: what errors call it.
        ignore: value of the pixels that are not labelled.

    Returns:
        interior: bool (height, width), True = cell interior; False where not labelled.
        known: bool (height, width), True = labelled; None where every pixel is.

    Raises:
        UserError: the label is neither binary nor does it number cells.
    """
    grey = to_grey(label)
    unsigned = grey.dtype.kind == "u" and grey.dtype.itemsize > 2  # -1 stored in those
    known = np.isfinite(grey) & (grey != (np.iinfo(grey.dtype).max if unsigned else -1))
    if ignore is not None:
        known &= grey != ignore
    elif np.array_equal(np.unique(grey[known]), (0, 1, 255)):
        known &= grey != 255
    grey = np.where(known, grey, 0)
    values = np.unique(grey)
    marked = set(values.tolist()) - {0}
    partly = len(marked) == 2 and 255 in marked and ignore is None  # 128 for what is not labelled
    if len(marked) < 2 and marked <= {1, 255, 65535}:
        interior = grey > 0
    elif not partly and _numbers_cells(grey, len(marked)):
        interior = grey > 0
        for axis in (0, 1):
            one, other = (np.moveaxis(array, axis, 0) for array in (grey, interior))
            touching = (one[1:] != one[:-1]) & (one[1:] > 0) & (one[:-1] > 0)
            other[1:] &= ~touching
            other[:-1] &= ~touching
    else:
        shown = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
        raise UserError(
            f"{where}: not a binary label, it has the values {shown}, and numbers no cells; "
            "expected 0 = membrane and one of 1, 255 or 65535 = cell interior; --ignore N for the "
            "value of pixels that are not labelled"
        )
    return interior, None if known.all() else known


def to_interior(label: np.ndarray, where: str) -> np.ndarray:
    """Returns what `read_label` takes for interior, where all pixels must be labelled."""
    interior, known = read_label(label, where)
    if known is not None:
        raise UserError(f"{where}: has pixels without a label (-1, NaN, or 255 beside 0 and 1)")
    return interior


def _numbers_cells(grey: np.ndarray, numbers: int) -> bool:
    """Tells whether values are numbers of cells: few parts each, unlike shades and classes."""
    if grey.dtype.kind == "f" and (grey != np.round(grey)).any():
        return False
    parts = connected_components(grey, background=0, connectivity=1).max()
    return parts <= CELL_PARTS * numbers and np.count_nonzero(grey) >= CELL_AREA * parts


def split_suffixed(files: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tells slices from labels that lie beside them, by their names: 1 and 1_mask."""
    labels = {name: content for name, content in files.items() if SUFFIX.search(name)}
    return {name: content for name, content in files.items() if name not in labels}, labels


def pair_names(slices: Iterable[str], labels: Iterable[str]) -> dict[str, str | None]:
    """Returns the label of each slice, by its own name or by its name and a suffix; or None."""
    labels = list(labels)
    known = {SUFFIX.sub("", name): name for name in labels} | {name: name for name in labels}
    return {name: known.get(name) for name in slices}


def pair_slices(
    slices: dict[str, np.ndarray], labels: dict[str, np.ndarray], paths: tuple[Path, Path]
) -> dict[str, str]:
    """Returns the name of each slice's label: in order where one is a stack, else by `pair_names`.

    Args:
        slices: (height, width[, 3]) each, by name.
        labels: likewise; there may be others.
        paths: of the slices and of the labels, for errors.

    Raises:
        UserError: a slice has no label, or one of another size.
    """
    in_order = len(slices) == len(labels) and not all(path.is_dir() for path in paths)
    found = dict(zip(slices, labels, strict=True)) if in_order else pair_names(slices, labels)
    missing = [name for name in slices if found[name] is None]
    if missing:
        raise UserError(
            f"{paths[0] / missing[0]} has no label of that name in {paths[1]} ({len(missing)} of "
            f"{len(slices)} slices have none, {len(labels)} labels in all); give both the same "
            "name, stacks as many pages, or move what is not labelled elsewhere"
        )
    for name, label in found.items():
        if slices[name].shape[:2] != labels[label].shape[:2]:
            sizes = ["{1}x{0}".format(*pixels.shape) for pixels in (slices[name], labels[label])]
            raise UserError(
                f"{paths[0] / name}: {sizes[0]} px with a label of {sizes[1]} px; both must have "
                "the same size"
            )
    return found


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
