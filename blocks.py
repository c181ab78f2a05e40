"""What is done to a block of a volume: predicted, written, shrunk, looked at, timed."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.transform import downscale_local_mean
from tqdm import tqdm

import grey
import unet
import volume
from areas import pixels_of, shift, whole, widen
from inference import Predictor
from jobs import Block, Job, mark
from masks import WINDOW_HALO
from pipeline import draw_mask
from slices import UnreadableError


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
    return mark(job, block, {"membrane": membrane, "computed_in": unet.choose_dtype()[0]})


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
    return mark(job, block, {})


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
