"""What the viewer lists: an entry for each slice, and one for each window of a large one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from membrane.inference.corrections import place_name, split_name
from membrane.inference.decisions import find_decisions
from membrane.inference.tiling import Region, full_region, intersect, relative_to, shape_of
from membrane.io.labels import INTERIOR
from membrane.io.writers import atomic_write
from membrane.viewer.page import (
    EDIT,
    LABELS,
    MAP,
    MASK,
    SLICE,
    VIEW,
    is_editable,
    make_edit,
    make_views,
    picture_path,
    read_edit,
    thin,
    thin_step,
)


@dataclass(frozen=True)
class Entry:
    """A slice, or a window of one, as the viewer has it.

    Args:
        about: what `write_page` says of it.
        files: the content of its files, by the end of their names.
        later: the ends of the names of those that are written later.
    """

    about: dict
    files: dict[str, bytes]
    later: tuple[str, ...] = ()

    def write(self, folder: Path) -> dict:
        """Writes the files; returns what the page says of it."""
        pictures = [end for end in (*self.files, *self.later) if end != EDIT]
        about = self.about | {"kinds": pictures}
        for end, content in self.files.items():
            with atomic_write(picture_path(folder, about["file"], end)) as part:
                part.write_bytes(content)
        edit = picture_path(folder, about["file"], EDIT)
        if "gains" not in about and "save_as" in about and edit.exists():
            about |= _count(read_edit(edit))  # that the interrupted command has left
        return about


def make_entries(
    page,
    key: str,
    predicted: np.ndarray | None,
    corrected: dict[str, list[dict]],
    probability: bool,
    labels: bool,
    region: Region | None = None,
    shape: tuple[int, int] | None = None,
) -> Iterator[Entry]:
    """Yields the entries of a predicted page.

    Slices of `2 * VIEW` px a side are shown thinned, and are corrected in windows of `VIEW`. Of one
    that comes in regions there are the windows; `join_windows` gives what shows it thinned.

    Args:
        page: a `Page` with its mask as written, its image grey, its map if predicted now.
        key: that tells it from others of its name.
        predicted: its mask before any correction, bool; None of one that was left there.
        corrected: the operations on its mask, of `Corrections.apply`.
        probability: whether P(interior) is shown.
        labels: whether its cells' numbers will be there.
        region: rows and columns of the slice that the page is a part of, starting where a window
            does; None for a whole slice.
        shape: of the whole slice; None for the page's own.
    """
    shape, later = shape or page.mask.shape, (LABELS,) if labels else ()
    seen = region or full_region(shape)
    about = {
        "name": page.source.short_name(page.number),
        "file": page.source.picture_name(page.number),
        "key": key,
        "slice": page.index,
        "size": list(shape),
        "place": "",
        "pixel_size": page.pixel_size and page.pixel_size[0],
    }
    save_as = page.source.mask_name(page.number).removesuffix(".png")
    if not (is_editable(shape) or region):
        image, shown = page.normalize(thin(page.image, VIEW)), page.map
        files = make_views(image, page.mask, shown if probability else None)
        yield Entry(about | {"membrane": membrane_fraction(page.mask, page.blank)}, files, later)
    for place, window in cut_windows(seen, shape).items():
        suffix, blank, here = file_suffix(place), page.blank, relative_to(window, seen)
        image, mask = page.normalize(page.image[here]), page.mask[here]
        own = about | {
            "name": about["name"] + place,
            "file": about["file"] + suffix,
            "place": place,
            "save_as": f"{save_as}{suffix}.png",
            "membrane": membrane_fraction(mask, None if blank is None else blank[here]),
        }
        shown = None if page.map is None else page.map[here]
        files = make_views(image, mask, shown if probability else None)
        if predicted is not None:
            found = find_decisions(page.segmentation, here)
            decisions = [one.to_json(shape_of(seen)[1], here) for one in found]
            done = corrected.get(own["name"], [])
            files |= make_edit(own["file"], predicted[here], image, shown, decisions, done)
            own |= _count({"decisions": decisions, "operations": done})
        yield Entry(own, files, later)


def join_windows(folder: Path, windows: Sequence[dict], membrane: float) -> Entry:
    """Returns the entry of a large slice, shown thinned, by the pictures of its windows.

    Args:
        folder: of the masks.
        windows: what the page says of them, all in one slice.
        membrane: `membrane_fraction` of the slice.
    """
    first, views = windows[0], {}
    place, shape = first["place"], tuple(first["size"])
    step = thin_step(shape, VIEW)
    for end in {SLICE, MASK, MAP} & set(first["kinds"]):
        views[end] = np.empty([-(-side // step) for side in shape], np.uint8)
        for one in windows:
            window = split_name(one["place"], shape)[1]
            here = tuple(slice(-(-line.start // step), -(-line.stop // step)) for line in window)
            top, left = (-line.start % step for line in window)
            with Image.open(picture_path(folder, one["file"], end)) as picture:
                views[end][here] = np.asarray(picture)[top::step, left::step]
    mask = np.where(views[MASK], np.uint8(0), np.uint8(INTERIOR))
    about = {word: first[word] for word in ("key", "slice", "size", "pixel_size")} | {
        "name": first["name"].removesuffix(place),
        "file": first["file"].removesuffix(file_suffix(place)),
        "place": "",
        "membrane": membrane,
    }
    files = make_views(views[SLICE] / 255, mask, views.get(MAP))
    return Entry(about, files, (LABELS,) if LABELS in first["kinds"] else ())


def membrane_fraction(mask: np.ndarray, blank: np.ndarray | None) -> float:
    """Returns how much of the tissue is membrane.

    Args:
        mask: uint8 (height, width), 255 = interior.
        blank: bool, likewise, True = no tissue; what is interior there was painted, and counts.
    """
    tissue = mask.size if blank is None else mask.size - blank.sum()
    return float(membrane_of_counts((mask == INTERIOR).sum(), tissue))


def membrane_of_counts(interior: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Returns `membrane_fraction`, given the pixels that are interior and those of tissue."""
    return 1 - interior / np.maximum(np.maximum(tissue, interior), 1)


def cut_windows(region: Region, shape: tuple[int, int]) -> dict[str, Region]:
    """Returns the windows that a region of a slice of this shape is corrected in.

    They are of `VIEW` px where the slice is large, each by its `place_name`; else there is the
    region alone, by "".
    """
    if is_editable(shape):
        return {"": region}
    corners = product(*(range(line.start, line.stop, VIEW) for line in region))
    cut = (tuple(slice(start, start + VIEW) for start in corner) for corner in corners)
    return {place_name(window): intersect(window, region) for window in cut}


def file_suffix(place: str) -> str:
    """Returns what comes after a slice's name in those of a window's files."""
    return re.sub("[/ ]", "-", place)


def _count(edit: dict) -> dict:
    """Returns what the page says of a slice that it corrects."""
    gains = [one["gain"] for one in edit["decisions"]]
    return {"editable": True, "gains": gains, "corrected": len(edit["operations"])}
