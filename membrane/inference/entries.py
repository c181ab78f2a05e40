"""What the viewer lists: an entry for each slice, and one for each window of a large one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from membrane.inference.corrections import place_name
from membrane.inference.decisions import find_decisions
from membrane.inference.tiling import Region, full_region
from membrane.io.labels import INTERIOR
from membrane.io.writers import atomic_write
from membrane.viewer.page import (
    EDIT,
    LABELS,
    VIEW,
    is_editable,
    make_edit,
    make_views,
    picture_path,
    read_edit,
    thin,
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
) -> Iterator[Entry]:
    """Yields the entries of a predicted page.

    Slices of `2 * VIEW` px a side are shown thinned, and are corrected in windows of `VIEW`.

    Args:
        page: a `Page` with its mask as written, its image grey, its map if predicted now.
        key: that tells it from others of its name.
        predicted: its mask before any correction, bool; None of one that was left there.
        corrected: the operations on its mask, of `Corrections.apply`.
        probability: whether P(interior) is shown.
        labels: whether its cells' numbers will be there.
    """
    shape, later = page.mask.shape, (LABELS,) if labels else ()
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
    windows = {"": full_region(shape)}
    if not is_editable(shape):
        image, shown = page.normalize(thin(page.image, VIEW)), page.map
        files = make_views(image, page.mask, shown if probability else None)
        yield Entry(about | {"membrane": membrane_fraction(page.mask, page.blank)}, files, later)
        windows, later = {place_name(region): region for region in cut_windows(shape)}, ()
    for place, region in windows.items():
        suffix, blank = re.sub("[/ ]", "-", place), page.blank
        image, mask = page.normalize(page.image[region]), page.mask[region]
        own = about | {
            "name": about["name"] + place,
            "file": about["file"] + suffix,
            "place": place,
            "save_as": f"{save_as}{suffix}.png",
            "membrane": membrane_fraction(mask, None if blank is None else blank[region]),
        }
        shown = None if page.map is None else page.map[region]
        files = make_views(image, mask, shown if probability else None)
        if predicted is not None:
            found = find_decisions(page.segmentation, region)
            decisions = [one.to_json(shape[1], region) for one in found]
            done = corrected.get(own["name"], [])
            files |= make_edit(own["file"], predicted[region], image, shown, decisions, done)
            own |= _count({"decisions": decisions, "operations": done})
        yield Entry(own, files, later)


def membrane_fraction(mask: np.ndarray, blank: np.ndarray | None) -> float:
    """Returns how much of the tissue is membrane.

    Args:
        mask: uint8 (height, width), 255 = interior.
        blank: bool, likewise, True = no tissue, where the mask has no interior.
    """
    tissue = (1.0 if blank is None else 1 - float(blank.mean())) or 1.0
    return 1 - float((mask == INTERIOR).mean()) / tissue


def cut_windows(shape: tuple[int, int]) -> Iterator[Region]:
    """Yields the windows of `VIEW` px that a large slice is corrected in."""
    for top in range(0, shape[0], VIEW):
        for left in range(0, shape[1], VIEW):
            yield slice(top, min(top + VIEW, shape[0])), slice(left, min(left + VIEW, shape[1]))


def _count(edit: dict) -> dict:
    """Returns what the page says of a slice that it corrects."""
    gains = [one["gain"] for one in edit["decisions"]]
    return {"editable": True, "gains": gains, "corrected": len(edit["operations"])}
