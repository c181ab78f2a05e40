"""What was corrected on a prediction's page, applied to the masks of the same slices."""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from membrane.errors import UserError
from membrane.inference.masks import Segmentation
from membrane.inference.tiling import Region, full_region, intersect, relative_to, shape_of
from membrane.inference.window_cells import WindowCells, find_border, open_windows
from membrane.viewer.page import VIEW

DECISIONS, PAINT = ("join", "separate", "leave"), ("membrane", "cell")
MAX_BRUSH, MAX_SIDE = 64, 2**16  # px, of a stroke; of what is corrected at once
PLACE = re.compile(r"/y(\d{1,6}) x(\d{1,6})$", re.ASCII)  # of a window, after the slice's name


@dataclass(frozen=True)
class Corrections:
    """Decisions and strokes, as the page saves them.

    `slices` has the operations on each slice, by its name, in their order: decisions {"kind":
    "join", "separate" or "leave", "at": [x, y], "sides": [[x, y], [x, y]], "pixels": [flat indices
    of the slice]}; strokes {"kind": "membrane" or "cell", "points": [[x, y], …], "size": px}; and
    {"kind": …, "pixels": […]}. Of a large slice there are those on its windows, by its name and
    their `place_name`; they count from the window's upper left.
    """

    slices: dict[str, list[dict]] = field(default_factory=dict)

    def apply(
        self,
        name: str,
        mask: np.ndarray,
        segmentation: Segmentation | None,
        shape: tuple[int, int],
        region: Region | None = None,
    ) -> dict[str, list[dict]]:
        """Corrects a mask in place.

        A decision is about the border that the segmentation has between its two sides now, which
        another model or threshold may draw elsewhere; where there is none, about its own pixels.

        Args:
            name: of the slice.
            mask: bool (height, width), True = interior, of the slice or a region of it.
            segmentation: that the mask was drawn from, if it was.
            shape: height and width of the slice.
            region: its rows and columns; None for all.

        Returns:
            The operations, by the names of slice and windows, with the pixels of the borders as
            they are drawn now, where they are.
        """
        done, region = {}, region or full_region(shape)
        cells = open_windows(segmentation) if segmentation else []
        for key, operations in self.slices.items():
            own, window = split_name(key, shape)
            if own == name and min(shape_of(window)) > 0:
                part = intersect(window, region)
                done[key] = [_apply(one, mask, cells, window, region, part) for one in operations]
        return done


def place_name(region: Region) -> str:
    """Returns what comes after a slice's name in that of a window of it."""
    return f"/y{region[0].start} x{region[1].start}"


def split_name(name: str, shape: tuple[int, int]) -> tuple[str, Region]:
    """Returns the slice, and the rows and columns, of a window of slices of this shape."""
    found = PLACE.search(name)
    if not found:
        return name, full_region(shape)
    corner = int(found[1]), int(found[2])
    return name[: found.start()], tuple(
        slice(start, min(start + VIEW, side)) for start, side in zip(corner, shape, strict=True)
    )


def _apply(
    operation: dict,
    mask: np.ndarray,
    cells: Sequence[WindowCells],
    window: Region,
    region: Region,
    part: Region,
) -> dict:
    """Applies an operation in a window to the mask of a region; part is where both are.

    Returns:
        The operation, with the pixels of its border as it is drawn now.
    """
    kind, pixels = operation["kind"], None
    corner = np.array([line.start for line in window])
    first = np.array([line.start for line in region])
    if kind in ("join", "separate"):
        points = np.array([operation["at"], *operation["sides"]])[:, ::-1] + (corner - first)
        at, *sides = map(tuple, points.tolist())
        pixels = find_border(cells, at, sides, kind == "join")
    if pixels is not None:
        mask.ravel()[pixels] = kind == "join"
        place = np.stack(np.unravel_index(pixels, mask.shape)) + (first - corner)[:, None]
        flat = np.ravel_multi_index(tuple(place), shape_of(window))
        return operation | {"pixels": flat.tolist()}
    if any(line.start >= line.stop for line in part):
        return operation
    seen = mask[relative_to(part, region)]
    offset = corner - [line.start for line in part]
    if kind in PAINT and "points" in operation:
        points = np.array(operation["points"])[:, ::-1] + offset
        draw(seen, points, operation["size"], kind == "cell")
    elif kind != "leave":
        y, x = np.divmod(np.array(operation["pixels"], int), shape_of(window)[1])
        y, x = y + offset[0], x + offset[1]
        here = (y >= 0) & (y < seen.shape[0]) & (x >= 0) & (x < seen.shape[1])
        seen[y[here], x[here]] = kind in ("join", "cell")
    return operation


def draw(mask: np.ndarray, points: np.ndarray, size: int, value: bool) -> None:
    """Draws a stroke, in place: all pixels within size / 2 of a line through the points.

    Args:
        mask: bool (height, width).
        points: int (points, 2), y and x; they may lie outside.
        size: diameter, px.
        value: what the pixels become.
    """
    ends = pairwise(points) if len(points) > 1 else [(points[0], points[0])]
    for start, end in ends:
        low = np.maximum(np.minimum(start, end) - size, 0)
        high = np.minimum(np.maximum(start, end) + size + 1, mask.shape)
        if (low >= high).any():
            continue
        y, x = np.ogrid[
            low[0] - start[0] : high[0] - start[0], low[1] - start[1] : high[1] - start[1]
        ]
        dy, dx = (end - start).tolist()
        length = dy * dy + dx * dx
        along = np.clip(y * dy + x * dx, 0, length)
        # in whole numbers, so that the page and this agree about every pixel
        off = (y * y + x * x) * max(length, 1) - 2 * along * (y * dy + x * dx) + along * along
        mask[low[0] : high[0], low[1] : high[1]][4 * off <= size * size * max(length, 1)] = value


def read_corrections(path: Path | None, keys: dict[str, str]) -> Corrections:
    """Reads corrections that the page of a prediction of some slices has saved.

    Those of slices that are not here are left out, with a note.

    Args:
        path: of the file; None for no corrections.
        keys: of the slices that are here, `Source.key`, by their names in the viewer.

    Raises:
        UserError: the file is not there, is something else, or is of other slices.
    """
    if path is None:
        return Corrections()
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        slices, known = content["slices"], content["keys"]
        for operations in slices.values():
            for operation in operations:
                _check(operation)
        here = {name: made for name, made in slices.items() if PLACE.sub("", name) in keys}
        strange = [name for name in here if known[name] != keys[PLACE.sub("", name)]]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name what the page has saved") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise UserError(f"{path}: not corrections as the page of a prediction saves them") from None
    if strange or (slices and not here):
        name = (strange or list(slices))[0]
        raise UserError(f"{path}: corrections of other slices: {name} is not here, or has changed")
    count, left_out = sum(map(len, here.values())), len(slices) - len(here)
    others = f"; those on {left_out} more, which are not here, are left out" if left_out else ""
    print(f"Corrections: {count} on {len(here)} slices or windows{others}")
    return Corrections(here)


def checksum(path: Path) -> str | None:
    """Returns what tells a file of corrections from others; None where it cannot be read."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def _check(operation: dict) -> None:
    """Raises if an operation is not as `Corrections` has it."""
    kind = operation["kind"]
    if kind in DECISIONS:
        at, sides = operation["at"], operation["sides"]
        good = len(sides) == 2 and _are_points([at, *sides])
        good = good and (kind == "leave" or _are_pixels(operation["pixels"]))
    elif kind in PAINT and "points" in operation:
        size = operation["size"]
        good = type(size) is int and 1 <= size <= MAX_BRUSH and _are_points(operation["points"])
    else:
        good = kind in PAINT and _are_pixels(operation["pixels"])
    if not good:
        raise ValueError


def _are_points(points: Sequence) -> bool:
    good = isinstance(points, list) and len(points) > 0
    return good and all(len(one) == 2 and _are_pixels(one, MAX_SIDE) for one in points)


def _are_pixels(pixels: Sequence, end: int = 2**32) -> bool:
    good = isinstance(pixels, list)
    return good and all(type(number) is int and 0 <= number < end for number in pixels)
