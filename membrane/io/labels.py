"""Labels and maps as files store them, and which label is of which slice."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label as connected_components

from membrane.errors import UserError
from membrane.io.normalization import to_grey
from membrane.io.readers import is_zarr

INTERIOR = 255  # in label and mask files; membrane is 0
CELL_PARTS, CELL_AREA = 5, 32  # numbers of cells have fewer parts, and px in each, on average
SUFFIX = re.compile(  # of a file's name, or of that of a stack's page, which ends in its number
    r"[-_ .]+(masks?|labels?|seg|segmentation|gt|membranes?|cells?)(?=(\[\d+\])?$)", re.IGNORECASE
)


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
    """Returns the name of each slice's label: in order, or of folders by `pair_names`.

    Args:
        slices: (height, width[, 3]) each, by name.
        labels: likewise; there may be others.
        paths: of the slices and of the labels: folders, stacks or Zarrs.

    Raises:
        UserError: a slice has no label, one of another size, or another slice's.
    """
    folders = all(path.is_dir() and not is_zarr(path) for path in paths)
    in_order = len(slices) == len(labels) and not folders
    found = dict(zip(slices, labels, strict=True)) if in_order else pair_names(slices, labels)
    missing = [name for name in slices if found[name] is None]
    if missing:
        raise UserError(
            f"{paths[0] / missing[0]} has no label of that name in {paths[1]} ({len(missing)} of "
            f"{len(slices)} slices have none, {len(labels)} labels in all); give both the same "
            "name, stacks as many pages, or move what is not labelled elsewhere"
        )
    owners = {label: name for name, label in found.items()}
    for name, label in found.items():
        if owners[label] != name:
            raise UserError(f"{paths[1] / label}: the label of {name} or of {owners[label]}?")
        if slices[name].shape[:2] != labels[label].shape[:2]:
            sizes = ["{1}x{0}".format(*pixels.shape) for pixels in (slices[name], labels[label])]
            raise UserError(
                f"{paths[0] / name}: {sizes[0]} px with a label of {sizes[1]} px; both must have "
                "the same size"
            )
    return found


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
