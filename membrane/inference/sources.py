"""The files of slices that a command is given, and where what is made of them goes."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from membrane.errors import UnreadableError, UserError
from membrane.io.containers import split_inner_path
from membrane.io.readers import count_pages, list_images, read_pages
from membrane.runs import METADATA_DIR

FOLDERS = {  # in that of the masks; labels as each slice numbers them by itself, while it lasts
    "mask": "",
    "map": "probability",
    "labels": f"{METADATA_DIR}/labels",
}
KEY_BYTES = 4096  # of a file's start and end, that tell it from others


@dataclass(frozen=True)
class Source:
    """A file of slices."""

    file: Path
    target: str  # the name of its masks' file
    pages: int
    first: int  # the number of its first page among all files' pages

    def output(self, folder: Path, kind: str) -> Path:
        """Returns the file of its "mask", "map" or "labels", as `Page` names them."""
        path = folder / FOLDERS[kind] / self.target
        return path.with_suffix(".tif") if kind == "labels" else path

    def name(self, number: int) -> str:
        """Returns what to call a page of it, by its number from 0."""
        return self.file.name if self.pages == 1 else f"{self.file.name}[{number + 1}]"

    def short_name(self, number: int) -> str:
        """Returns what the viewer calls it."""
        stem = Path(self.target).stem
        return stem if self.pages == 1 else f"{stem}[{number + 1}]"

    def picture_name(self, number: int) -> str:
        """Returns what the viewer's files of a page begin with, whatever other files there are."""
        return f"{hashlib.sha256(os.fsencode(self.target)).hexdigest()[:10]}-{number:04d}"

    @cached_property
    def key(self) -> str:
        """Tells its slices from others of the same name: by its size, first and last bytes."""
        states = b""
        with contextlib.suppress(OSError), open(split_inner_path(self.file)[0], "rb") as file:
            states = file.read(KEY_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - KEY_BYTES))
            states += file.read() + b"%d" % size
        return hashlib.sha256(states).hexdigest()[:16]

    def mask_name(self, number: int) -> str:
        """Returns the name of a PNG of its mask alone."""
        stem = Path(self.target).stem
        return f"{stem}.png" if self.pages == 1 else f"{stem}-{number + 1:04d}.png"


def find_sources(
    files: Sequence[Path], max_pixels: int, channel: int | None = None
) -> tuple[list[Source], dict[str, str]]:
    """Returns the usable ones of the files of `list_files`, and why others are not, by name.

    The masks of `a.ome.tif` are called `a.tif`: they are no OME-TIFF.
    """
    sources, failed, taken, first = [], {}, {}, 0
    for file in files:
        try:
            pages = count_pages(file, max_pixels, channel)
        except UnreadableError as error:
            failed[file.name] = str(error)
            continue
        stem = output_stem(file)
        target = f"{stem}.png" if pages == 1 else f"{stem}.tif"
        other = taken.setdefault(stem.casefold(), file)
        if other != file:
            raise UserError(
                f"{other} and {file.name} would both be written to {target}; rename one of them"
            )
        sources.append(Source(file, target, pages, first))
        first += pages
    names = {}
    for source in sources:
        for number in range(source.pages):
            other = names.setdefault(source.short_name(number), source)
            if other != source:
                raise UserError(
                    f"{source.file.name} has the name of a page of {other.file.name}; rename it"
                )
    return sources, failed


def count_pixels(sources: Sequence[Source], max_pixels: int, channel: int | None = None) -> int:
    """Returns the pixels of the first slice; 1 where it cannot be read."""
    with contextlib.suppress(UnreadableError, LookupError, StopIteration):
        first = next(read_pages(sources[0].file, max_pixels, stop=1, channel=channel))
        return first.shape[0] * first.shape[1]
    return 1


def list_keys(sources: Iterable[Source]) -> dict[str, str]:
    """Returns the key of each slice, by its name in the viewer."""
    keys = ((source, source.key) for source in sources)
    return {one.short_name(page): key for one, key in keys for page in range(one.pages)}


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Returns the image files of some folders or files, in natural order in each folder."""
    files = []
    for path in paths:
        if re.match(r"\w+:/", str(path)) and not path.exists():
            raise UserError(f"{path}: remote storage is not read; copy the slices here first")
        if not split_inner_path(path)[0].exists():
            raise UserError(f"{path}: no such file or folder; name the slices to predict")
        files += list_images(path) if path.is_dir() else [path]
    return files


def output_stem(file: Path) -> str:
    """Returns the name for what is made of a file, without a suffix."""
    file, inner = split_inner_path(file)
    stem = re.sub(r"\.ome$", "", file.stem, flags=re.IGNORECASE)
    return "-".join([stem, *(part for part in inner.split("/") if part)])


def find_needed(sources: Iterable[Source], folder: Path, reach: int) -> set[int]:
    """Returns the pages to predict: those without a mask, and those within reach of them."""
    needed = set()
    for source in sources:
        if not source.output(folder, "mask").exists():
            needed.update(range(source.first - reach, source.first + source.pages + reach))
    return needed
