"""What the viewer lists: an entry for each slice, and one for each window of a large one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from membrane.inference.corrections import place_name
from membrane.inference.decisions import find_decisions
from membrane.inference.masks import Segmentation
from membrane.inference.tiling import Region, full_region
from membrane.io.writers import atomic_write
from membrane.viewer.page import (
    EDIT,
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
    """

    about: dict
    files: dict[str, bytes]

    def write(self, folder: Path) -> dict:
        """Writes the files; returns what the page says of it."""
        about = self.about | {"kinds": [end for end in self.files if end != EDIT]}
        for end, content in self.files.items():
            with atomic_write(picture_path(folder, about["file"], end)) as part:
                part.write_bytes(content)
        edit = picture_path(folder, about["file"], EDIT)
        if "gains" not in about and "save_as" in about and edit.exists():
            about |= _count(read_edit(edit))  # that the interrupted command has left
        return about


def make_entries(
    page, predicted: np.ndarray | None, corrected: dict[str, list[dict]], probability: bool
) -> Iterator[Entry]:
    """Yields the entries of a predicted page.

    Slices of `2 * VIEW` px a side are shown thinned, and are corrected in windows of `VIEW`.

    Args:
        page: a `Page` with its mask as written, its image grey, its map if predicted now.
        predicted: its mask before any correction, bool; None of one that was left there.
        corrected: the operations on its mask, of `Corrections.apply`.
        probability: whether the map is shown.
    """
    name, shape = page.source.short_name(page.number), page.mask.shape
    save_as = page.source.mask_name(page.number)
    windows = list(cut_windows(shape)) if not is_editable(shape) else [full_region(shape)]
    known = {"step": 1 + len(windows)} if len(windows) > 1 else {}
    if len(windows) > 1:
        image = page.normalize(thin(page.image, VIEW))
        files = make_views(image, page.mask, page.map if probability else None)
        about = {"name": name, "file": f"{page.index:05d}", "membrane": _membrane(page.mask)}
        yield Entry(about | known, files)
    for region in windows:
        place = place_name(region) if len(windows) > 1 else ""
        image, mask = page.normalize(page.image[region]), page.mask[region]
        shown = None if page.map is None else page.map[region]
        files = make_views(image, mask, shown if probability else None)
        file = f"{page.index:05d}{place.replace(' ', '-')}"
        about = {"name": name + place, "file": file, "membrane": _membrane(mask)} | known
        about["save_as"] = f"{save_as[:-4]}{place.replace(' ', '-')}.png"
        if predicted is not None:
            decisions = _ask(page.segmentation, region)
            done = corrected.get(name + place, [])
            files |= make_edit(file, predicted[region], image, shown, decisions, done)
            about |= _count({"decisions": decisions, "operations": done})
        yield Entry(about, files)


def cut_windows(shape: tuple[int, int]) -> Iterator[Region]:
    """Yields the windows of `VIEW` px that a large slice is corrected in."""
    for top in range(0, shape[0], VIEW):
        for left in range(0, shape[1], VIEW):
            yield slice(top, min(top + VIEW, shape[0])), slice(left, min(left + VIEW, shape[1]))


def _ask(segmentation: Segmentation, region: Region) -> list[dict]:
    """Returns the closest decisions in a region, as the page has them."""
    found = find_decisions(segmentation, region)
    return [one.to_json(segmentation.segments.shape[1], region) for one in found]


def _count(edit: dict) -> dict:
    """Returns what the page says of a slice that it corrects."""
    gains = [one["gain"] for one in edit["decisions"]]
    return {"editable": True, "gains": gains, "corrected": len(edit["operations"])}


def _membrane(mask: np.ndarray) -> float:
    """Returns how much of a mask is membrane."""
    return float((mask == 0).mean())
