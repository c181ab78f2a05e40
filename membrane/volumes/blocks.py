"""What is done to a block of a volume: predicted, written, shrunk, inspected, timed."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from skimage.transform import downscale_local_mean
from tqdm import tqdm

from membrane.errors import UnreadableError
from membrane.inference.batch import Page
from membrane.inference.entries import make_entries
from membrane.inference.masks import WINDOW_HALO
from membrane.inference.neighbours import REACH as NEIGHBOURS
from membrane.inference.neighbours import ROUNDS, Series
from membrane.inference.precision import choose_precision
from membrane.inference.predictor import Predictor
from membrane.inference.tiling import Region, expand, full_region, relative_to, shape_of
from membrane.io import normalization
from membrane.io.labels import to_mask_bytes
from membrane.io.normalization import make_normalizer, middle_region
from membrane.io.tissue import REACH, fill_blank, find_blank
from membrane.volumes import pyramid, store
from membrane.volumes.jobs import Block, Job, mark
from membrane.volumes.labels import BlockLabels

PAGE_BYTES = 1.5  # per pixel of a slice, of what the page corrects it with; measured: 1.1 to 1.8


def predict_block(job: Job, source: store.Volume, predictor: Predictor, block: Block) -> dict:
    """Predicts a block and writes it.

    Each slice is normalised by the grey values of `sample_regions`, wherever the block lies in it,
    so the masks do not depend on the blocks.

    Returns:
        interior, tissue: how many pixels of each of its slices are.
        agreed: slices, each with whether it agrees with the one before, where that can be told.
        entries: what the page says of what it corrects there, but for the slices' keys.
        computed_in: the precision of whoever predicted it.
    """
    shape = source.shape[1:]
    seen = expand(block.region, 0 if job.flags.plain else WINDOW_HALO, shape)
    tiled = job.scale == (1.0, 1.0)
    read = predictor.tiling.input_region(seen, shape) if tiled else full_region(shape)
    wide = expand(read, REACH, shape)  # for what is tissue, as the whole slice tells it
    wanted, here, flags = *(relative_to(block.region, one) for one in (seen, wide)), job.flags
    masks = np.empty(np.subtract(block.stop, block.start), np.uint8)
    tissue = np.full(len(masks), masks[0].size)
    maps, held, ahead = np.empty_like(masks), {}, ROUNDS if flags.neighbours else 0
    labels, pages, entries = BlockLabels(block) if flags.labels else None, {}, []
    first, last = max(block.z.start - ahead, 0), min(block.z.stop + ahead, source.shape[0])
    stack, samples = _read(source, slice(first, last), wide)

    def segment(z):
        """Returns the segments of a slice; reads it where it lies beyond those that mostly do."""
        if z in held or not 0 <= z < source.shape[0]:
            return held.get(z)
        if first <= z < last:
            image, sample = stack[z - first], samples[z - first]
        else:
            (image,), (sample,) = _read(source, slice(z, z + 1), wide)
        normalize = make_normalizer(sample, **job.scaling, invert=flags.invert)
        blank = find_blank(image)
        whole = fill_blank(image, blank, sample)
        if tiled:
            image = whole[relative_to(read, wide)]
            probability = predictor.predict_region(image, seen, shape, normalize)
        else:
            probability = predictor(whole, job.scale, normalize)[seen]
        if blank is not None:
            probability[blank[relative_to(seen, wide)]] = 0.0
        if block.z.start <= z < block.z.stop:
            if blank is not None:
                tissue[z - block.z.start] -= blank[here].sum()
            if flags.probability or z in job.shown:
                maps[z - block.z.start] = normalization.to_bytes(probability[wanted])
            if flags.labels or z in job.shown:
                size = (flags.pixel_size,) * 2 if flags.pixel_size else source.pixel_size
                about = {"pixel_size": size, "normalize": normalize}
                about |= {"blank": None if blank is None else blank[here]}
                about |= {"probability": probability[wanted]}
                pages[z] = Page(job.slice_source(z), 0, whole[here], **about)
        held[z] = job.threshold_map(probability, flags.threshold, flags.plain, wanted)
        return held[z]

    series, agreed = Series(segment, flags.threshold), []
    for number, z in enumerate(range(block.z.start, block.z.stop)):
        if flags.neighbours:
            segmentation = series.close_gaps(z)
            agreed.append((z, series.agree(z - 1, z)))
        else:
            segmentation = segment(z).close_gaps(flags.threshold)
        predicted = segmentation.mask()
        mask, name = predicted.copy(), job.names.get(z, "")
        done = job.corrections.apply(name, mask, segmentation, shape, block.region)
        page = pages.pop(z, None)
        if labels:
            labels.add(z, page.probability, mask, page.blank)
        masks[number] = to_mask_bytes(mask)
        if z in job.shown:
            page.mask, page.segmentation = masks[number], segmentation
            page.map = maps[number]
            about = predicted, done, flags.probability, flags.labels, block.region, shape
            made = make_entries(page, "", *about)
            entries += [entry.write(job.masks.parent) for entry in made]
        series.forget(z - NEIGHBOURS)
        held.pop(z - NEIGHBOURS, None)
    if labels:
        labels.write(job)
    for path, part in zip(job.outputs, (masks, maps), strict=False):
        pyramid.write_part(path, 0, block.start, part)
    return mark(
        job,
        block,
        {
            "interior": (masks != 0).sum((1, 2)).tolist(),
            "tissue": tissue.tolist(),
            "agreed": [pair for pair in agreed if pair[1] is not None],
            "computed_in": choose_precision()[0],
            "entries": entries,
        },
    )


def shrink_block(job: Job, block: Block) -> dict:
    """Writes a block of a higher level of the pyramids: means of the voxels of the level below."""
    (_, below), (_, spans) = job.levels[block.level - 1 : block.level + 1]
    factors = np.floor_divide(spans, below)
    corners = zip((block.start * factors).tolist(), (block.stop * factors).tolist(), strict=True)
    place = tuple(slice(*ends) for ends in corners)
    for path in job.outputs:
        part = pyramid.read_part(path, block.level - 1, place)
        padding = [(0, lacking) for lacking in -np.array(part.shape) % factors]
        part = downscale_local_mean(np.pad(part, padding, mode="edge"), tuple(factors))
        pyramid.write_part(path, block.level, block.start, np.round(part).astype(np.uint8))
    return mark(job, block, {})


def looks_inverted(job: Job, source: store.Volume, z: int) -> bool:
    """Tells whether a slice seems to have bright membranes, by its middle."""
    try:
        return normalization.looks_inverted(_see_middle(job, source, z), job.scale)
    except UnreadableError:  # is said when its block's turn comes
        return False


def show(job: Job, source: store.Volume, z: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the middle of a slice, as the network sees it, and of its mask."""
    mask = pyramid.read_part(job.masks, 0, (slice(z, z + 1), *middle_region(source.shape[1:])))[0]
    return _see_middle(job, source, z), mask


def describe(job: Job, source: store.Volume, predictor: Predictor, workers: int) -> list[str]:
    """Returns lines on what predicting a volume will take, by a trial on a part of it."""
    flags, tiling = job.flags, predictor.tiling
    voxels, shape = math.prod(source.shape), source.shape[1:]
    halo = 0 if flags.plain else WINDOW_HALO
    regions = [expand(one.region, halo, shape) for one in job.cut(0) if one.start[0] == 0]
    work = sum(math.prod(shape_of(tiling.input_region(one, shape))) for one in regions)
    more = work / math.prod(shape) if job.scale == (1.0, 1.0) else math.prod(job.scale)
    ahead = min(2 * ROUNDS * flags.neighbours, source.shape[0] - job.block[0])
    more *= (job.block[0] + ahead) / job.block[0]
    image = _see_middle(job, source, source.shape[0] // 2)
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(2):  # the first one builds the network's graph
            began = time.perf_counter()
            maps = pool.map(predictor, [image] * workers)
            cut = pool.map(lambda one: job.threshold_map(one, flags.threshold, flags.plain), maps)
            list(pool.map(lambda one: one.close_gaps(flags.threshold).mask(), cut))
            rate = workers * image.size / (time.perf_counter() - began) / more
    counts = [sum(1 for _ in job.cut(level)) for level in range(len(job.levels))]
    outputs = len(job.outputs)
    written = outputs * sum(math.prod(shape) for shape, _ in job.levels)
    block, chunk = format_shape(job.block), format_shape(pyramid.chunk_of(job.block))
    levels_above = f"; {sum(counts[1:]):,} more for a pyramid" if counts[1:] else ""
    pixels = len(job.shown) * math.prod(shape)
    page = f"; {pixels * PAGE_BYTES / 1e6:,.0f} MB for the page" if pixels else ""
    hours = tqdm.format_interval(voxels / rate)
    return [
        f"Volume: {format_shape(source.shape)} (z, y, x), {voxels / 1e6:,.1f} Mvoxel, "
        f"{voxels * source.itemsize / 1e6:,.0f} MB uncompressed",
        f"Blocks: {counts[0]:,} of {block}, a file each, in chunks of {chunk}{levels_above}",
        f"Written: {written / 1e6:,.0f} MB before compression, in {outputs * sum(counts):,} files"
        + page,
        f"Read and computed beyond the blocks' own pixels: {max(0.0, more - 1):.0%}",
        f"Time: about {hours} (h:min:s) at {rate / 1e6:.2f} Mpixel/s, as this machine did on "
        f"{format_shape(image.shape)} px of it" + ", without the page" * bool(pixels),
    ]


def _see_middle(job: Job, source: store.Volume, z: int) -> np.ndarray:
    """Returns the middle of a slice as the network sees it."""
    (image,), (sample,) = _read(source, slice(z, z + 1), middle_region(source.shape[1:]))
    image = fill_blank(image, find_blank(image), sample)
    return make_normalizer(sample, **job.scaling, invert=job.flags.invert)(image)


def _read(
    source: store.Volume, z: slice, region: Region
) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Returns a region of some slices, and of each the pixels its grey values are measured on."""
    shape = source.shape[1:]
    if source.whole or region == full_region(shape):
        stack = source.read(z, full_region(shape))
        return stack[:, *region], [normalization.sample_pixels(image) for image in stack]
    parts = [source.read(z, part) for part in normalization.sample_regions(shape)]
    samples = [normalization.pixels_of_tissue(images) for images in zip(*parts, strict=True)]
    for number, sample in enumerate(samples):
        if not sample.size:
            one = slice(z.start + number, z.start + number + 1)
            samples[number] = normalization.sample_pixels(source.read(one, full_region(shape))[0])
    return source.read(z, region), samples


def format_shape(sides: Sequence[int]) -> str:
    """Returns sides as people write them."""
    return " × ".join(map(str, sides))
