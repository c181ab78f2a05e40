"""The data set: where it comes from, its layouts, pairs, the hold-out, and random tiles.

`find_data_set(None)` downloads ISBI-2012 through kagglehub, once; a folder's layout is recognised
by looking; "synthetic" draws slices. `TileSampler` cuts and augments 256x256 tiles on the device.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

import slices
import synthetic
from slices import UserError

HANDLE = "hamzamohiuddin/isbi-2012-challenge"
LAYOUTS = (  # images, labels, test images; relative to the data set's root
    ("train/imgs", "train/labels", "test/imgs"),
    ("train-volume.tif", "train-labels.tif", "test-volume.tif"),
    ("train/image", "train/label", "test"),
    ("image", "label", "test"),
)
MARKER = "SYNTHETIC.txt"  # in the root of a data set drawn by `synthetic`
SYNTHETIC_SLICES = {"train": 20, "test": 5}
SYNTHETIC_SIZE = 512
TILE = 256  # px
STEPS = 4096  # per unit of grey, of the slices kept on the device as int16

BY_HAND = (
    f"get it by hand from https://www.kaggle.com/datasets/{HANDLE}, or the organisers' "
    "ISBI-2012-challenge.zip, unpack it and give the folder as --data DIR; "
    "or try everything on drawn slices with --data synthetic"
)


@dataclass(frozen=True)
class DataSet:
    """Where a data set lies: folders of slices, or multi-page TIFFs."""

    source: str  # "kaggle", "synthetic" or the folder, for `find_data_set` again
    root: Path
    images: Path
    labels: Path
    test: Path | None

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
        return _look(_download(), "kaggle")
    if source == "synthetic":
        if not (drawn / MARKER).exists():
            _draw(drawn)
        return _look(drawn, source)
    root = Path(source).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data takes a folder, or the word synthetic")
    return _look(root, str(root.resolve()))


def load_pairs(data_set: DataSet) -> Pairs:
    """Reads all labelled slices and checks that images and labels belong together.

    Raises:
        UserError: their number, names or sizes differ, or a label is not binary.
    """
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
        pairs.images.append(slices.normalise(image))
        pairs.labels.append(slices.to_interior(label, str(data_set.labels / label_name)))
    if not any(label.any() for label in pairs.labels) or all(map(np.all, pairs.labels)):
        raise UserError(
            f"{data_set.labels}: one class in all labels; expected 0 = membrane, 255 = interior"
        )
    return pairs


def split(pairs: Pairs, val_slices: str | None = None) -> tuple[Pairs, Pairs]:
    """Holds out one contiguous block of whole slices.

    Neighbouring slices resemble each other, so a random choice would flatter the scores.

    Args:
        pairs: all labelled slices.
        val_slices: "21-25" or "7", counted from 1 in sorted order; None for the last fifth.

    Returns:
        The slices to train on, and those held out.

    Raises:
        UserError: no such slices, or none would be left.
    """
    count = len(pairs.names)
    if count < 2:
        raise UserError("one labelled slice only: training needs a second one to validate on")
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


class TileSampler:
    """Cuts random 256x256 tiles and augments them, as one graph on the training device.

    The slices stay on the device; a step sends it the numbers of its tiles only. The tiles are a
    function of seed and numbers, so a training can go on where it stopped. Each pixel of a tile has
    one place in the slice from which image and label are read together, so that no crop, flip,
    rotation or deformation can move one without the other.

    Args:
        images: float32 (height, width) each, normalised; sizes may differ, and be below a tile's.
        labels: bool (height, width) each, True = interior.
        seed: of all random choices.
    """

    def __init__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], seed: int):
        pixels = [
            np.round(np.stack([image, label], axis=-1) * STEPS).astype(np.int16).reshape(-1, 2)
            for image, label in zip(images, labels, strict=True)
        ]
        self.pixels = tf.constant(np.concatenate(pixels))
        self.sizes = tf.constant([image.shape for image in images], tf.int64)
        self.starts = tf.constant(np.cumsum([0] + [image.size for image in images[:-1]]), tf.int64)
        self.seed = seed

    def __call__(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the tiles of these numbers.

        Args:
            numbers: int64 (batch,), consecutive.

        Returns:
            images: float32 (batch, 256, 256, 1), about [0, 1].
            labels: float32 (batch, 256, 256, 1), 0 = membrane, 1 = interior.
        """
        count = tf.shape(numbers)[0]
        seeds = tf.random.split(tf.stack([tf.constant(self.seed, tf.int64), numbers[0]]), 4)
        draw = tf.random.stateless_uniform((count,), seeds[0])
        chosen = tf.cast(draw * self.sizes.shape[0], tf.int64)
        places = self._draw_places(tf.gather(self.sizes, chosen), seeds[1])
        tiles = self._read(chosen, places + _draw_deformation(count, seeds[2]))
        return _draw_exposure(tiles[..., :1], seeds[3]), tf.round(tiles[..., 1:])

    def _draw_places(self, sizes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns (batch, 256, 256, 2) rows and columns: a crop, flipped and turned at random."""
        draw = tf.random.stateless_uniform((tf.shape(sizes)[0], 5), seed)
        room = tf.cast(sizes - TILE, tf.float32)
        corner = tf.where(room > 0, tf.floor(draw[:, :2] * (room + 1)), tf.floor(room / 2))
        along = tf.range(TILE, dtype=tf.float32)
        rows, cols = tf.meshgrid(along, along, indexing="ij")
        grid = tf.stack([rows, cols], axis=-1)
        flip = (draw[:, 2:4] < 0.5)[:, None, None, :]
        grid = tf.where(flip, TILE - 1 - grid, grid)
        grid = tf.where((draw[:, 4] < 0.5)[:, None, None, None], tf.reverse(grid, [-1]), grid)
        return corner[:, None, None, :] + grid

    def _read(self, chosen: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Returns (batch, 256, 256, 2) image and label between pixels, reflected at borders."""
        last = tf.cast(tf.gather(self.sizes, chosen) - 1, tf.float32)[:, None, None, :]
        period = tf.maximum(2 * last, 1)
        places = tf.abs(places) % period
        places = tf.clip_by_value(tf.minimum(places, period - places), 0, last)
        low = tf.floor(places)
        part = places - low
        high = tf.cast(tf.minimum(low + 1, last), tf.int64)
        low = tf.cast(low, tf.int64)
        start = tf.gather(self.starts, chosen)[:, None, None]
        width = tf.gather(self.sizes, chosen)[:, 1][:, None, None]

        def at(rows, cols):
            pixels = tf.gather(self.pixels, start + rows * width + cols)
            return tf.cast(pixels, tf.float32) / STEPS

        right, down = part[..., 1:], part[..., :1]
        above = at(low[..., 0], low[..., 1]) * (1 - right) + at(low[..., 0], high[..., 1]) * right
        below = at(high[..., 0], low[..., 1]) * (1 - right) + at(high[..., 0], high[..., 1]) * right
        return above * (1 - down) + below * down


def _draw_deformation(count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns (batch, 256, 256, 2) px: smooth displacements for one tile in three."""
    size = (count, 1, 1, 1)
    chosen = tf.random.stateless_uniform(size, seed) < 1 / 3
    coarse = tf.random.stateless_normal((count, 5, 5, 2), seed + 1, stddev=10.0)
    return tf.where(chosen, tf.image.resize(coarse, (TILE, TILE), "bicubic"), 0.0)


def _draw_exposure(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the tiles with random contrast and brightness and, for half of them, gamma."""
    draw = tf.random.stateless_uniform((4, tf.shape(images)[0], 1, 1, 1), seed)
    contrast = 0.8 * (1.25 / 0.8) ** draw[0]
    images = (images - slices.MEAN) * contrast + slices.MEAN + 0.2 * draw[1] - 0.1
    gamma = 0.7 * (1.4 / 0.7) ** draw[2]
    return tf.where(draw[3] < 0.5, tf.maximum(images, 0.0) ** gamma, images)


def _download() -> Path:
    """Returns the folder of ISBI-2012 in kagglehub's cache; asks the network only without one."""
    import kagglehub
    import requests
    from kagglehub.config import get_cache_folder

    home = Path(get_cache_folder(), "datasets", HANDLE)
    cached = [path.stem for path in home.glob("*.complete")]
    handle = f"{HANDLE}/versions/{max(cached, key=int)}" if cached else HANDLE
    try:
        return Path(kagglehub.dataset_download(handle))
    except requests.ConnectionError:
        reason = "no connection to it"
    except requests.RequestException as error:  # what has arrived is kept: the next try goes on
        reason = _first_line(error)
    except Exception as error:  # an archive that is none, a cache that cannot be written: anything
        reason = _first_line(error)
        for archive in home.glob("*.archive"):  # kagglehub would append the next try to it
            archive.unlink()
    raise UserError(f"{HANDLE} cannot be downloaded from Kaggle ({reason}); {BY_HAND}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def _draw(folder: Path) -> None:
    """Writes a data set of synthetic slices with labels; the marker comes last."""
    seed = 0
    for part, count in SYNTHETIC_SLICES.items():
        for number in range(1, count + 1):
            image, interior = synthetic.make_slice(SYNTHETIC_SIZE, SYNTHETIC_SIZE, seed)
            name = f"synthetic_{number:04d}.png"
            slices.write_pages(folder / part / "imgs" / name, iter([image]))
            label = interior * np.uint8(slices.INTERIOR)
            slices.write_pages(folder / part / "labels" / name, iter([label]))
            seed += 1
    with slices.whole_file(folder / MARKER) as part:
        part.write_text("These slices are drawn by synthetic.py; no microscope saw them.\n")


def _look(root: Path, source: str) -> DataSet:
    """Returns the first known layout in `root` or directly below it."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    for folder in (root, root / "unmodified-data", *below):
        for images, labels, test in LAYOUTS:
            if (folder / images).exists() and (folder / labels).exists():
                test_path = folder / test
                found = test_path if test_path.exists() else None
                return DataSet(source, folder, folder / images, folder / labels, found)
    known = "; ".join(f"{images} + {labels}" for images, labels, _ in LAYOUTS)
    raise UserError(f"{root}: no labelled slices found; expected one of: {known}")


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
