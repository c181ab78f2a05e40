"""The data set: where it comes from, its layouts, pairs, the hold-out.

`find_data_set(None)` downloads ISBI-2012 through kagglehub, once; a folder's layout is recognised
by looking; "synthetic" draws slices.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import files
import grey
import kaggle
import slices
import synthetic
from contrast import check_fit
from slices import UserError

LAYOUTS = (  # images, labels, test images; relative to the data set's root
    ("train/imgs", "train/labels", "test/imgs"),
    ("train-volume.tif", "train-labels.tif", "test-volume.tif"),
    ("train/image", "train/label", "test"),
    ("image", "label", "test"),
)
PIXEL_SIZE = 4.0  # nm, of ISBI-2012
MARKER = "SYNTHETIC.txt"  # in the root of a data set drawn by `synthetic`
SYNTHETIC_SLICES = {"train": 20, "test": 5}
SYNTHETIC_SIZE = 512


@dataclass(frozen=True)
class DataSet:
    """Where a data set lies: folders of slices, or multi-page TIFFs."""

    source: str  # "kaggle", "synthetic" or the folder, for `find_data_set` again
    root: Path
    images: Path
    labels: Path
    test: Path | None
    fresh: bool = False  # downloaded just now

    def pixel_size(self) -> float | None:
        """Returns the side of a pixel in nm, if it is known."""
        if self.source == "kaggle":
            return PIXEL_SIZE
        return slices.read_pixel_size(
            slices.list_images(self.images)[0] if self.images.is_dir() else self.images
        )

    @property
    def is_synthetic(self) -> bool:
        """Whether its slices are drawn, not photographed."""
        return (self.root / MARKER).exists()


@dataclass(frozen=True)
class Pairs:
    """Labelled slices in memory, in sorted order."""

    names: list[str]
    images: list[np.ndarray]  # float32 (height, width), normalised
    labels: list[np.ndarray]  # bool (height, width), True = cell interior

    def take(self, indices: Sequence[int]) -> "Pairs":
        """Returns some of the slices."""
        columns = (self.names, self.images, self.labels)
        return Pairs(*([column[i] for i in indices] for column in columns))

    def checksum(self) -> int:
        """Returns a number that tells these pixels from others."""
        number = 0
        for pixels in self.images + self.labels:
            number = zlib.crc32(pixels.tobytes(), number)
        return number


def find_data_set(source: str | None, drawn: Path) -> DataSet:
    """Finds, downloads or draws a data set.

    Args:
        source: None or "kaggle" for ISBI-2012 through kagglehub, "synthetic", or a folder.
        drawn: the folder that holds the synthetic slices, or shall.

    Raises:
        UserError: it cannot be had, or no known layout is in it.
    """
    if source in (None, "kaggle"):
        root, fresh = kaggle.download()
        with kaggle.forgotten_if_refused(fresh):
            return _look(root, "kaggle", fresh)
    if source == "synthetic":
        if not (drawn / MARKER).exists():
            _draw(drawn)
        return _look(drawn, source)
    root = Path(source)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of labelled slices (nor kaggle, nor synthetic)")
    return _look(root, str(root.resolve()))


def load_pairs(data_set: DataSet) -> Pairs:
    """Reads all labelled slices and checks that images and labels belong together.

    Raises:
        UserError: their number, names or sizes differ, or a label is not binary or inverted, or
            all are of the slice before or after.
    """
    with kaggle.forgotten_if_refused(data_set.fresh):
        return _load_pairs(data_set)


def split(pairs: Pairs, val_slices: str | None = None) -> tuple[Pairs, Pairs]:
    """Holds out one contiguous block of whole slices.

    Neighbouring slices resemble each other, so a random choice would flatter the scores.

    Args:
        pairs: all labelled slices.
        val_slices: "21-25" or "7", counted from 1 in sorted order; "none"; None for the last fifth.

    Returns:
        The slices to train on, and those held out.

    Raises:
        UserError: no such slices, or none would be left.
    """
    count = len(pairs.names)
    if val_slices == "none":
        return pairs, pairs.take([])
    if count < 2:
        raise UserError(
            "one labelled slice only: training needs a second one to validate on, or none at all: "
            "--val-slices none"
        )
    first, last = count - max(1, count // 5) + 1, count
    if val_slices is not None:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", val_slices)
        if not match:
            raise UserError(f"--val-slices {val_slices}: expected a range such as {first}-{last}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= count:
            raise UserError(f"--val-slices {val_slices}: there are slices 1-{count}")
    if last - first + 1 == count:
        raise UserError(f"--val-slices {val_slices}: no slice is left to train on")
    held_out = range(first - 1, last)
    training = pairs.take([i for i in range(count) if i not in held_out])
    validation = pairs.take(held_out)
    if not any(label.any() for label in validation.labels):
        raise UserError(f"slices {first}-{last}: their labels have no interior; hold out others")
    return training, validation


def _load_pairs(data_set: DataSet) -> Pairs:
    """Reads and checks all labelled slices."""
    images = list(slices.read_named(data_set.images))
    labels = list(slices.read_named(data_set.labels))
    if len(images) != len(labels):
        raise UserError(
            f"{data_set.images} has {len(images)} slices and {data_set.labels} has {len(labels)}; "
            "every slice needs its label"
        )
    pairs = Pairs([], [], [])
    for (name, image), (label_name, label) in zip(images, labels, strict=True):
        if data_set.images.is_dir() and name != label_name:
            raise UserError(
                f"{data_set.images / name} has no label of that name in {data_set.labels} "
                f"(found {label_name}); give both the same name"
            )
        if image.shape[:2] != label.shape[:2]:
            raise UserError(
                f"{data_set.images / name}: a slice of {_size(image)} px with a label of "
                f"{_size(label)} px; both must have the same size"
            )
        pairs.names.append(name)
        pairs.images.append(grey.normalise(image))
        pairs.labels.append(grey.to_interior(label, str(data_set.labels / label_name)))
    if not any(label.any() for label in pairs.labels) or all(map(np.all, pairs.labels)):
        raise UserError(
            f"{data_set.labels}: one class in all labels; expected 0 = membrane, 255 = interior"
        )
    check_fit(pairs.names, pairs.images, pairs.labels, data_set.labels)
    return pairs


def _draw(folder: Path) -> None:
    """Writes a data set of synthetic slices with labels; the marker comes last."""
    seed = 0
    for part, count in SYNTHETIC_SLICES.items():
        for number in range(1, count + 1):
            image, interior = synthetic.make_slice(SYNTHETIC_SIZE, SYNTHETIC_SIZE, seed)
            name = f"synthetic_{number:04d}.png"
            files.write_pages(folder / part / "imgs" / name, [image])
            label = interior * np.uint8(slices.INTERIOR)
            files.write_pages(folder / part / "labels" / name, [label])
            seed += 1
    with files.whole_file(folder / MARKER) as part:
        part.write_text("These slices are drawn by synthetic.py; no microscope saw them.\n")


def _look(root: Path, source: str, fresh: bool = False) -> DataSet:
    """Returns the first known layout in `root` or directly below it."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    for folder in (root, root / "unmodified-data", *below):
        for images, labels, test in LAYOUTS:
            if (folder / images).exists() and (folder / labels).exists():
                test_path = folder / test
                found = test_path if test_path.exists() else None
                return DataSet(source, folder, folder / images, folder / labels, found, fresh)
    known = "; ".join(f"{images} + {labels}" for images, labels, _ in LAYOUTS)
    raise UserError(f"{root}: no labelled slices found; expected one of: {known}")


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
