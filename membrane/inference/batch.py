"""Many slices in flight: read ahead, several predicted at once, handed on in order."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from membrane.errors import UnreadableError
from membrane.inference import neighbours
from membrane.inference.corrections import Corrections
from membrane.inference.entries import Entry, make_entries, membrane_fraction
from membrane.inference.masks import Segmentation, Segments, label_cells, measure_cells
from membrane.inference.predictor import Predictor
from membrane.inference.sources import Source
from membrane.io.labels import to_mask_bytes
from membrane.io.normalization import looks_inverted, middle_region, scale_shape, to_bytes
from membrane.io.pixel_size import Size, find_scale, read_pixel_size
from membrane.io.readers import read_pages
from membrane.viewer.page import thin
from membrane.viewer.plots import make_thumbnail

PIXELS_IN_FLIGHT = 2**26  # beyond these, one slice at a time
MAX_TOGETHER = 2**25  # px; the masks of larger slices are decided one by one, since many are held


@dataclass
class Page:
    """One slice on its way; what is not known yet, or not wanted, is None."""

    source: Source
    number: int  # in its file, from 0
    image: np.ndarray | None = None  # (height, width[, 3]), as the file has it
    blank: np.ndarray | None = None  # bool (height, width), True = no tissue
    scale: Size = (1.0, 1.0)  # of height and width, to the pixels that the network is trained at
    pixel_size: Size | None = None  # nm, y and x
    normalize: Callable | None = None  # its grey values to those that the network is trained on
    probability: np.ndarray | None = None  # P(interior), float32 (height, width)
    segments: Segments | None = None  # of what its mask is made
    segmentation: Segmentation | None = None  # the cells that they make
    agrees: bool | None = None  # with the slice before; None where nothing can be compared
    mask: np.ndarray | None = None  # bool (height, width), or as written: uint8, 255 = interior
    map: np.ndarray | None = None  # P(interior) as written or shown, uint8 (height, width)
    labels: np.ndarray | None = None  # (height, width)
    cells: dict[str, np.ndarray] | None = None  # a table of them
    error: str | None = None  # why the file cannot be read on
    in_colour: bool = False
    blank_fraction: float = 0.0  # how much of it is no tissue
    membrane: float = 0.0  # how much of the tissue is membrane
    looks_inverted: bool = False
    thumbnails: tuple = ()  # of image and mask
    entries: Sequence[Entry] = ()  # what the viewer has of it; its cells have no number yet

    @property
    def index(self) -> int:
        """Its number among all pages."""
        return self.source.first + self.number

    @property
    def name(self) -> str:
        """What to call it."""
        return self.source.name(self.number)


@dataclass(frozen=True)
class PredictionConfig:
    """What is read, and what is wanted beside the masks."""

    pixel_size: float | None  # nm, that the network is trained at; None if that is not known
    override_pixel_size: Size | None  # nm, of all the slices; None for what their files say
    max_pixels: int  # of a slice, and of what the network sees of it
    channel: int | None  # from 1, of files that have several; 0 takes them for slices
    invert: bool  # whether membranes are bright
    probability: bool  # whether P(interior) is wanted, too, as 8-bit images
    submission: bool  # whether it is wanted as it is
    labels: bool  # whether the cells are wanted, numbered
    together: bool  # whether neighbouring slices have a say in each other's masks
    thumbnail_pages: frozenset[int]  # numbers, among all pages, that a thumbnail is wanted of
    viewer_pages: frozenset[int]  # that the viewer shows
    corrections: Corrections  # of masks
    polarity_sample: frozenset[int]  # that tell whether membranes are bright


def read_slices(
    sources: Iterable[Source], folder: Path, config: PredictionConfig
) -> Iterator[Page]:
    """Yields the pages of all files, with what an interrupted command has left of them in folder.

    Of a file that cannot be read on, the last one has an `error`.
    """
    for source in sources:
        number = 0
        try:
            size = config.override_pixel_size or read_pixel_size(source.file)
            scale = find_scale(size, config.pixel_size)
            images = read_pages(source.file, config.max_pixels, channel=config.channel)
            left = _read_left(source, folder, config)
            for number, (image, found) in enumerate(zip(images, left, strict=False)):
                check_scaled(source.file, image.shape[:2], scale, config.max_pixels)
                seen = {"scale": scale, "pixel_size": size, "in_colour": image.ndim == 3}
                yield Page(source, number, image, **seen, **found)
        except UnreadableError as error:
            yield Page(source, number, error=str(error))


def check_scaled(path: Path, shape: tuple[int, int], scale: Size, max_pixels: int) -> None:
    """Refuses a slice that the network would see too large."""
    seen = scale_shape(shape, scale)
    if scale != (1.0, 1.0) and math.prod(seen) > max_pixels:
        raise UnreadableError(
            f"{path}: {seen[1]}x{seen[0]} px at the model's pixel size, over {max_pixels:,}; is "
            "its pixel size right? Give --pixel-size, cut it into smaller ones, or raise "
            "--max-pixels"
        )


def in_flight(
    work: Callable[[Page], Page], pages: Iterable[Page], pool: Executor, workers: int
) -> Iterator[Page]:
    """Yields `work(page)` of all pages in order, while later ones are computed in the pool.

    Those with an error are handed on as they are. So many `workers` compute at once, while pages
    are small.
    """
    waiting, pixels = deque(), 0
    for page in pages:
        size = 0 if page.image is None else page.image.size * max(1.0, math.prod(page.scale))
        done = (lambda page: page) if page.error else work
        waiting.append((pool.submit(done, page), size))
        pixels += size
        while len(waiting) > 2 * workers or pixels > PIXELS_IN_FLIGHT:
            future, size = waiting.popleft()
            pixels -= size
            yield future.result()
    while waiting:
        yield waiting.popleft()[0].result()


def close_gaps(pages: Iterable[Page], threshold: float, config: PredictionConfig) -> Iterator[Page]:
    """Yields pages, in order, with the cells that their segments make.

    Args:
        pages: segmented, but for those that are lost.
        threshold: on P(interior), in (0, 1), of whole borders.
        config: whether neighbouring slices have a say, and what is wanted beside the masks.
    """

    def hold(page):
        wanted = config.probability or page.index in config.viewer_pages
        if wanted and page.map is None and page.probability is not None:
            page.map = to_bytes(page.probability)
        if not (config.submission or config.labels):
            page.probability = None
        if page.segments and math.prod(page.segments.shape) > MAX_TOGETHER:
            page.segmentation, page.segments = page.segments.close_gaps(threshold), None
        return page, page.segments

    slices = map(hold, pages)
    for page, segmentation, page.agrees in neighbours.close_gaps(
        slices, threshold, config.together
    ):
        page.segmentation = segmentation or page.segmentation
        page.segments = None
        yield page


def finish_page(page: Page, config: PredictionConfig) -> Page:
    """Adds to a predicted page what is wanted beside its mask, and lets go of the rest.

    Its image is grey by now, and filled where it is no tissue.
    """
    predicted, done = None, {}
    if page.mask is None:  # else an interrupted command has left it
        predicted = page.segmentation.mask()
        page.mask, name = predicted.copy(), page.source.short_name(page.number)
        done = config.corrections.apply(name, page.mask, page.segmentation, page.mask.shape)
        if config.labels:
            page.labels = label_cells(page.probability, page.mask, page.blank)
            cells = measure_cells(page.labels, page.probability)
            page.cells = {"page": np.full(len(cells["label"]), page.number + 1)} | cells
        page.mask = to_mask_bytes(page.mask)
    image, page.membrane = page.image, membrane_fraction(page.mask, page.blank)
    if page.index in config.polarity_sample:
        middle = page.normalize(image[middle_region(image.shape)])
        page.looks_inverted = looks_inverted(middle, page.scale)
    if page.index in config.thumbnail_pages:
        small = page.normalize(thin(image)), thin(page.mask)
        page.thumbnails = tuple(map(make_thumbnail, small))
    if page.index in config.viewer_pages:
        wanted = config.probability, config.labels
        page.entries = list(make_entries(page, page.source.key, predicted, done, *wanted))
    page.map = page.map if config.probability else None
    page.image = page.normalize = page.segmentation = None
    page.blank_fraction = 0.0 if page.blank is None else float(page.blank.mean())
    page.blank = None
    page.probability = page.probability if config.submission else None
    return page


@contextlib.contextmanager
def open_threads(count: int, predictor: Predictor) -> Iterator[ThreadPoolExecutor]:
    """Gives threads for work with a predictor; when anything goes wrong, both stop at once."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        predictor.stop()  # else the slices in flight would be finished first
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _read_left(source: Source, folder: Path, config: PredictionConfig) -> Iterator[dict]:
    """Yields what the interrupted command that this continues has left of each page."""
    if not source.output(folder, "mask").exists():  # it comes last: without it, nothing counts
        yield from repeat({})
    kinds = ["mask", "map"] if config.probability else ["mask"]
    pages = (read_pages(source.output(folder, kind), config.max_pixels) for kind in kinds)
    for found in zip(*pages, strict=False):
        yield dict(zip(kinds, found, strict=True))
