"""The data set: download ISBI-2012, find its layout, read pairs, hold out a block, cut tiles.

Files and folders everywhere: 0 = membrane, 255 = cell interior.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kagglehub
import numpy as np
import requests
import tensorflow as tf

from membrane.errors import UserError, first_line
from membrane.io.kaggle_cache import cached_version, guarded_download, invalidate_cache_on_error
from membrane.io.label_checks import check_label_contrast
from membrane.io.labels import pair_names, pair_slices, read_labels, split_suffixed
from membrane.io.normalization import normalize
from membrane.io.pixel_size import read_square_pixel_size
from membrane.io.readers import is_image, list_images, read_named
from membrane.synthetic import SYNTHETIC_MARKER, write_data_set
from membrane.training.augmentation import UNKNOWN, load_slices, make_tile

HANDLE = "hamzamohiuddin/isbi-2012-challenge"
PIXEL_SIZE = 4.0  # nm, of ISBI-2012
LAYOUTS = (  # images, labels, test images; relative to the data set's root
    ("train/imgs", "train/labels", "test/imgs"),
    ("train-volume.tif", "train-labels.tif", "test-volume.tif"),
    ("train/image", "train/label", "test"),
    ("image", "label", "test"),
    ("", "", "test"),  # 1.png and 1_mask.png beside each other
)
BY_HAND = (
    f"get it by hand from https://www.kaggle.com/datasets/{HANDLE}, or the organisers' "
    "ISBI-2012-challenge.zip, unpack it and give the folder as --data DIR; "
    "or try everything on synthetic slices with --data synthetic"
)


@dataclass(frozen=True)
class DataSet:
    """Where a data set lies: folders of slices, or multi-page TIFFs."""

    source: str  # "kaggle", "synthetic" or the folder, for `find_data_set` again
    root: Path
    images: Path
    labels: Path
    test: Path | None
    fresh: bool = False  # downloaded just now

    @property
    def pixel_size(self) -> float | None:
        """The side of a pixel in nm, if it is known."""
        if self.source == "kaggle":
            return PIXEL_SIZE
        file = list_images(self.images)[0] if self.images.is_dir() else self.images
        return read_square_pixel_size(file)

    @property
    def is_synthetic(self) -> bool:
        """Whether its slices are drawn, not photographed."""
        return (self.root / SYNTHETIC_MARKER).exists()


@dataclass(frozen=True)
class Pairs:
    """Labelled slices in memory, in natural order of their names."""

    names: list[str]
    images: list[np.ndarray]  # float32 (height, width), normalised
    labels: list[np.ndarray]  # bool (height, width), True = cell interior
    known: Sequence[np.ndarray | None] = ()  # bool, True = labelled, or None; of all, or empty

    def subset(self, indices: Sequence[int]) -> "Pairs":
        """Returns some of the slices."""
        columns = (self.names, self.images, self.labels, self.known)
        return Pairs(*([column[i] for i in indices if column] for column in columns))

    def checksum(self) -> int:
        """Returns a number that tells these pixels from others."""
        number = 0
        for pixels in self.images + self.labels + [one for one in self.known if one is not None]:
            number = zlib.crc32(pixels.tobytes(), number)
        return number


def find_data_set(source: str | None, synthetic_folder: Path) -> DataSet:
    """Finds, downloads or draws a data set.

    Args:
        source: None or "kaggle" for ISBI-2012, "synthetic", or a folder.
        synthetic_folder: holds the synthetic slices, or shall.

    Raises:
        UserError: it cannot be had, or no known layout is in it.
    """
    if source in (None, "kaggle"):
        root, fresh = download_isbi2012()
        with invalidate_cache_on_error(HANDLE, fresh, BY_HAND):
            return detect_layout(root, "kaggle", fresh)
    if source == "synthetic":
        if not (synthetic_folder / SYNTHETIC_MARKER).exists():
            write_data_set(synthetic_folder)
        return detect_layout(synthetic_folder, source)
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder of labelled slices (nor kaggle, nor synthetic)")
    return detect_layout(Path(source), str(Path(source).resolve()))


def download_isbi2012() -> tuple[Path, bool]:
    """Downloads ISBI-2012 from Kaggle, once; no account is needed.

    Returns:
        The folder in kagglehub's cache, and whether it has just been filled. Where it was full
        before, the network is not asked.

    Raises:
        UserError: it cannot be had; says how else to get it.
    """
    handle = cached_version(HANDLE)
    try:
        with guarded_download(HANDLE):
            return Path(kagglehub.dataset_download(handle)), handle == HANDLE
    except requests.ConnectionError:
        reason = "no connection to it"
    except Exception as error:  # HTTP, an archive that is none, a cache that cannot be written
        reason = first_line(error)
    raise UserError(f"{HANDLE} cannot be downloaded from Kaggle ({reason}); {BY_HAND}")


def detect_layout(root: Path, source: str, fresh: bool = False) -> DataSet:
    """Returns the first known layout in `root` or directly below it."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    for folder in (root, root / "unmodified-data", *below):
        for images, labels, test in LAYOUTS:
            exist = (folder / images).exists() and (folder / labels).exists()
            if exist and (images != labels or has_labelled_slices(folder)):
                found = folder / test if (folder / test).exists() else None
                return DataSet(source, folder, folder / images, folder / labels, found, fresh)
    known = "; ".join(f"{images} + {labels}" for images, labels, _ in LAYOUTS[:-1])
    raise UserError(
        f"{root}: no labelled slices found; expected one of: {known}; or 1.png beside 1_mask.png"
    )


def has_labelled_slices(folder: Path) -> bool:
    """Tells whether a folder holds slices and, beside them, labels of their names and a suffix."""
    names = {path.stem: None for path in folder.iterdir() if is_image(path.name)}
    return any(pair_names(*split_suffixed(names)).values())


def load_pairs(data_set: DataSet, ignore: int | None = None) -> Pairs:
    """Reads all labelled slices, normalises them, and checks that images and labels fit.

    Args:
        data_set: of `find_data_set`.
        ignore: value in the labels of pixels that are not labelled.

    Raises:
        UserError: their number, names or sizes differ, or `read_labels` and `check_label_contrast`
            refuse labels.
    """
    with invalidate_cache_on_error(HANDLE, data_set.fresh, BY_HAND):
        images, labels = (dict(read_named(path)) for path in (data_set.images, data_set.labels))
        if data_set.images == data_set.labels:  # 1.png and 1_mask.png in one folder
            images, labels = split_suffixed(images)
        found = pair_slices(images, labels, (data_set.images, data_set.labels))
        if len(images) != len(labels):
            others = f"{len(labels)} labels for {len(images)} slices"
            raise UserError(f"{data_set.labels}: {others}; every label needs its slice")
        pairs = Pairs([], [], [], [])
        truth = {str(data_set.labels / label): labels[label] for label in found.values()}
        for (name, image), label in zip(images.items(), read_labels(truth, ignore), strict=True):
            columns = (pairs.names, pairs.images, pairs.labels, pairs.known)
            for column, value in zip(columns, (name, normalize(image), *label), strict=True):
                column.append(value)
        check_label_contrast(pairs.names, pairs.images, pairs.labels, data_set.labels, pairs.known)
        return pairs


def hold_out(pairs: Pairs, val_slices: str | None = None) -> tuple[Pairs, Pairs]:
    """Holds out one contiguous block of whole slices.

    Neighbouring slices resemble each other, so a random choice would flatter the scores.

    Args:
        pairs: all labelled slices.
        val_slices: "21-25" or "7", counted from 1 in natural order; "none"; None for the last
            fifth.

    Returns:
        The slices to train on, and those held out.

    Raises:
        UserError: no such slices, or none would be left.
    """
    count = len(pairs.names)
    if val_slices == "none":
        return pairs, pairs.subset([])
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
    training = pairs.subset([i for i in range(count) if i not in held_out])
    validation = pairs.subset(held_out)
    if not any(label.any() for label in validation.labels):
        raise UserError(f"slices {first}-{last}: their labels have no interior; hold out others")
    if not any(known is None or known.any() for known in training.known or [None]):
        raise UserError(f"beside slices {first}-{last} no pixel is labelled; hold out others")
    return training, validation


def tiles(pairs: Pairs, numbers: range, batch_size: int, seed: int = 0) -> tf.data.Dataset:
    """Cuts random 256x256 tiles of the slices and augments them, on the cores beside the training.

    A tile follows from the seed and its number alone, whatever the batch size, so a training can
    go on where it stopped.

    Args:
        pairs: labelled slices of any size.
        numbers: of the tiles.
        batch_size: tiles per batch; a last one that is not full is dropped.
        seed: of all random choices.

    Returns:
        Batches of image, float32 (batch, 256, 256, 1), about [0, 1], and label, float32 of the
        same shape, 0 = membrane, 1 = interior. Where pixels have no label: 0.5, and a third array,
        their weight in the loss, 0.
    """
    slices = load_slices(pairs.images, pairs.labels, pairs.known)
    batches = (
        tf.data.Dataset.range(numbers.start, numbers.stop)
        .map(lambda number: make_tile(slices, seed, number), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
    )
    if slices.anchors is not None:
        batches = batches.map(
            lambda image, label: (image, label, tf.cast(label != UNKNOWN, tf.float32))
        )
    return batches.prefetch(tf.data.AUTOTUNE)
