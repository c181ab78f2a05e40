"""The blocks of a volume: how it is cut, how one is predicted and written, what is done already.

A block is a range of z with an area of rows and columns: what is written at once. A task is its
corners, not its pixels; whoever gets it reads what it needs, predicts slice by slice, writes the
block, and then its marker. So at any moment the markers say what is done, and a run that was
stopped goes on with the rest.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from skimage.transform import downscale_local_mean
from tqdm import tqdm

import grey
import unet
import volume
from areas import pixels_of, shift, whole, widen
from files import write_json
from inference import Predictor
from masks import WINDOW, WINDOW_HALO
from pipeline import draw_mask
from runs import ABOUT
from slices import UnreadableError

SIDE = 12 * WINDOW  # px; longer slices are cut, where masks are made from windows anyway
SIDE_OF_CHUNKS = 4 * WINDOW  # the same where slices cannot be read one by one
DEPTH, VOXELS = 16, 2**27  # a block has 16 slices, or as many as are so many voxels


@dataclass(frozen=True)
class Block:
    """Where a block starts and ends, (z, y, x), in a level of the pyramid: 0 = the volume."""

    level: int
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Its marker's."""
        return "-".join(map(str, (self.level, *self.start)))

    @property
    def z(self) -> slice:
        """Its slices."""
        return slice(self.start[0], self.stop[0])

    @property
    def area(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.start[1], self.stop[1]), slice(self.start[2], self.stop[2])


@dataclass(frozen=True)
class Job:
    """What any process must know to predict any block of a volume.

    Args:
        source: path of the volume.
        state: that changes when the volume does.
        model: path of the network.
        folder: of the masks.
        name: what they are called.
        max_pixels: of a slice.
        threshold: on P(interior).
        plain: whether it is put to single pixels, not to whole borders.
        tta: whether to average 8 flips and rotations.
        scaling: `grey.normaliser`'s mean and deviation, as pairs.
        scale: from the volume's pixels to those that the network knows.
        invert: whether membranes are bright.
        probability: whether P(interior) is wanted, too.
        block: shape of the blocks, as `choose_block` gives.
        levels: of the pyramid, as `volume.plan_levels` gives.
    """

    source: Path
    state: str
    model: Path
    folder: Path
    name: str
    max_pixels: int
    threshold: float
    plain: bool
    tta: bool
    scaling: tuple[tuple[str, float], ...]
    scale: float
    invert: bool
    probability: bool
    block: tuple[int, int, int]
    levels: Sequence[tuple]

    @property
    def masks(self) -> Path:
        """The OME-Zarr of the masks."""
        return self.folder / f"{self.name}.zarr"

    @property
    def outputs(self) -> list[Path]:
        """It, and that of P(interior) if wanted."""
        return [self.masks] + [self.folder / "probability" / self.masks.name] * self.probability

    @property
    def markers(self) -> Path:
        """The folder of the finished blocks' markers."""
        return self.folder / ABOUT / "blocks"

    def cut(self, level: int) -> Iterator[Block]:
        """Yields the blocks of a level, slice by slice."""
        shape, _ = self.levels[level]
        starts = (range(0, side, step) for side, step in zip(shape, self.block, strict=True))
        for start in product(*starts):
            ends = zip(start, self.block, shape, strict=True)
            yield Block(level, start, tuple(min(a + step, side) for a, step, side in ends))


def choose_block(
    shape: tuple[int, int, int], scale: float = 1.0, chunk_depth: int = 1
) -> tuple[int, int, int]:
    """Chooses the shape of the blocks, (z, y, x).

    Large slices are cut into parts that start where a mask's windows do. The fewer, the less is
    computed twice at their borders. But chunks of many slices are read for each block they meet, so
    there several slices should go into a block. A slice that is resampled is never cut.

    Args:
        shape: of the volume.
        scale: from its pixels to those that the network knows.
        chunk_depth: how many slices must be read at once.
    """
    largest = SIDE if chunk_depth == 1 else SIDE_OF_CHUNKS
    sides = []
    for side in shape[1:]:
        count = 1 if scale != 1.0 else -(-side // largest)
        sides.append(side if count == 1 else -(-side // (count * WINDOW)) * WINDOW)
    depth = max(1, min(DEPTH, shape[0], VOXELS // math.prod(sides)))
    return depth, *sides


def predict_block(job: Job, source: volume.Volume, predictor: Predictor, block: Block) -> dict:
    """Predicts a block and writes it.

    Each slice is normalised by the grey values of `grey.cut_sample`, wherever the block lies in it,
    so the masks do not depend on the blocks.

    Returns:
        membrane: how many membrane pixels each of its slices has.
        computed_in: the number format of whoever predicted it.
    """
    shape = source.shape[1:]
    seen = widen(block.area, 0 if job.plain else WINDOW_HALO, shape)
    read = predictor.needs(seen, shape) if job.scale == 1.0 else whole(shape)
    stack, samples = _read(source, block.z, read)
    masks = np.empty([b - a for a, b in zip(block.start, block.stop, strict=True)], np.uint8)
    maps = np.empty_like(masks)
    wanted = shift(block.area, seen)
    for number, (image, sample) in enumerate(zip(stack, samples, strict=True)):
        normalise = grey.normaliser(sample, **dict(job.scaling), invert=job.invert)
        if job.scale == 1.0:
            probability = predictor.predict_area(image, seen, shape, normalise)
        else:
            probability = predictor(image, job.scale, normalise)
        masks[number] = draw_mask(probability, job.threshold, job.plain, wanted)
        if job.probability:
            maps[number] = grey.to_bytes(probability[wanted])
    for path, part in zip(job.outputs, (masks, maps), strict=False):
        volume.write_part(path, 0, block.start, part)
    membrane = (masks == 0).sum((1, 2)).tolist()
    return _mark(job, block, {"membrane": membrane, "computed_in": unet.choose_dtype()[0]})


def shrink_block(job: Job, block: Block) -> dict:
    """Writes a block of a higher level of the pyramids: means of the voxels of the level below."""
    (_, below), (_, spans) = job.levels[block.level - 1 : block.level + 1]
    factors = tuple(a // b for a, b in zip(spans, below, strict=True))
    starts = [a * factor for a, factor in zip(block.start, factors, strict=True)]
    stops = [b * factor for b, factor in zip(block.stop, factors, strict=True)]
    place = tuple(slice(*ends) for ends in zip(starts, stops, strict=True))
    for path in job.outputs:
        part = volume.read_part(path, block.level - 1, place)
        odd = [(0, -side % factor) for side, factor in zip(part.shape, factors, strict=True)]
        part = downscale_local_mean(np.pad(part, odd, mode="edge"), factors)
        volume.write_part(path, block.level, block.start, np.round(part).astype(np.uint8))
    return _mark(job, block, {})


def looks_inverted(job: Job, source: volume.Volume, z: int) -> bool:
    """Tells whether a slice seems to have bright membranes, by its middle."""
    try:
        return grey.looks_inverted(_see_middle(job, source, z), job.scale)
    except UnreadableError:  # is said when its block's turn comes
        return False


def show(job: Job, source: volume.Volume, z: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the middle of a slice, as the network sees it, and of its mask."""
    mask = volume.read_part(job.masks, 0, (slice(z, z + 1), *grey.cut_middle(source.shape[1:])))[0]
    return _see_middle(job, source, z), mask


def describe(job: Job, source: volume.Volume, predictor: Predictor, workers: int) -> list[str]:
    """Returns lines that say what predicting a volume will take, by a trial on a part of it."""
    voxels, shape = math.prod(source.shape), source.shape[1:]
    halo = 0 if job.plain else WINDOW_HALO
    areas = [widen(one.area, halo, shape) for one in job.cut(0) if one.start[0] == 0]
    work = sum(pixels_of(predictor.needs(area, shape)) for area in areas)
    more = work / math.prod(shape) if job.scale == 1.0 else job.scale**2
    z = source.shape[0] // 2
    image = source.read(slice(z, z + 1), grey.cut_middle(shape))[0]
    normalise = grey.normaliser(grey.sample(image), **dict(job.scaling), invert=job.invert)
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(2):  # the first one builds the network's graph
            began = time.perf_counter()
            maps = pool.map(lambda _: predictor(image, 1.0, normalise), range(workers))
            list(pool.map(lambda one: draw_mask(one, job.threshold, job.plain), maps))
            rate = workers * image.size / (time.perf_counter() - began) / more
    counts = [sum(1 for _ in job.cut(level)) for level in range(len(job.levels))]
    outputs = len(job.outputs)
    written = outputs * sum(math.prod(shape) for shape, _ in job.levels)
    block, chunk = _by(job.block), _by(volume.chunk_of(job.block))
    pyramid = f"; {sum(counts[1:]):,} more for a pyramid" if counts[1:] else ""
    hours = tqdm.format_interval(voxels / rate)
    return [
        f"Volume: {_by(source.shape)} (z, y, x), {voxels / 1e6:,.1f} Mvoxel, "
        f"{voxels * source.itemsize / 1e6:,.0f} MB uncompressed",
        f"Blocks: {counts[0]:,} of {block}, a file each, in chunks of {chunk}{pyramid}",
        f"Written: {written / 1e6:,.0f} MB before compression, in {outputs * sum(counts):,} files",
        f"Read and computed beyond the blocks' own pixels: {max(0.0, more - 1):.0%}",
        f"Time: about {hours} (h:min:s) at {rate / 1e6:.2f} Mpixel/s, as this machine did on "
        f"{_by(image.shape)} px of it",
    ]


def _see_middle(job: Job, source: volume.Volume, z: int) -> np.ndarray:
    """Returns the middle of a slice as the network sees it."""
    area = grey.cut_middle(source.shape[1:])
    (image,), (sample,) = _read(source, slice(z, z + 1), area)
    return grey.normaliser(sample, **dict(job.scaling), invert=job.invert)(image)


def _read(source: volume.Volume, z: slice, area: tuple) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Returns an area of some slices, and of each the pixels its grey values are measured on."""
    shape = source.shape[1:]
    if source.whole or area == whole(shape):
        stack = source.read(z, whole(shape))
        return stack[:, *area], [grey.sample(image) for image in stack]
    parts = [source.read(z, part) for part in grey.cut_sample(shape)]
    samples = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return source.read(z, area), samples


def _by(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def read_marker(job: Job, block: Block) -> dict | None:
    """Returns what a finished block's task returned, None of one that is not finished."""
    try:
        return json.loads((job.markers / f"{block.name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _mark(job: Job, block: Block, content: dict) -> dict:
    write_json(job.markers / f"{block.name}.json", content)
    return content
