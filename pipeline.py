"""Many slices through one network: read ahead, several in flight, handed on in order."""

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

import grey
import slices
from areas import Area, whole
from figures import VIEW, make_thumbnail, make_views, thin
from inference import Predictor
from masks import measure_cells, to_labels, to_mask
from slices import UnreadableError

SAME_SIZE = 0.02  # pixel sizes that differ by less are one
PIXELS_IN_FLIGHT = 2**26  # beyond these, one slice at a time


@dataclass(frozen=True)
class Source:
    """A file of slices."""

    file: Path
    target: str  # the name of its masks' file
    pages: int
    first: int  # the number of its first page among all files' pages

    def place(self, folder: Path, kind: str) -> Path:
        """Returns the file of its "mask", "probability" or "labels" in a folder of masks."""
        if kind == "labels":
            return folder / kind / f"{self.file.stem}.tif"
        return (folder if kind == "mask" else folder / kind) / self.target


@dataclass
class Page:
    """One slice on its way; what is not known yet, or not wanted, is None."""

    source: Source
    number: int  # in its file, from 0
    image: np.ndarray | None = None  # (height, width[, 3]), as the file has it
    mask: np.ndarray | None = None  # uint8 (height, width), 255 = interior
    probability: np.ndarray | None = None  # uint8 (height, width)
    exact: np.ndarray | None = None  # P(interior), float32 (height, width)
    labels: np.ndarray | None = None  # (height, width)
    cells: dict[str, np.ndarray] | None = None  # a table of them
    scale: float = 1.0  # from the file's pixels to those that the network knows
    pixel_size: float | None = None  # nm
    error: str | None = None  # why the file cannot be read on
    in_colour: bool = False
    looks_inverted: bool = False
    thumbnails: tuple = ()  # of image and mask
    views: dict[str, bytes] | None = None  # the page's pictures of it

    @property
    def name(self) -> str:
        """What to call it."""
        file = self.source.file.name
        return file if self.source.pages == 1 else f"{file}[{self.number + 1}]"


@dataclass(frozen=True)
class Recipe:
    """How slices are predicted.

    Args:
        predictor: the network.
        threshold: on P(interior).
        plain: whether it is put to single pixels, not to whole borders.
        scaling: `grey.normaliser`'s mean and deviation.
        pixel_size: nm, that the network knows; None if it knows none.
        given_size: nm, of all the slices; None for what their files say.
        invert: whether membranes are bright.
        probability: whether P(interior) is wanted, too, as 8-bit images.
        submission: whether it is wanted as it is.
        labels: whether the cells are wanted, numbered.
        max_pixels: of a slice, and of what the network sees of it.
        on_sheet: the numbers of the pages, among all, that a thumbnail is wanted of.
        on_page: the numbers of those that the page shows.
        looked_at: the numbers of those that tell whether membranes are bright.
    """

    predictor: Predictor
    threshold: float
    plain: bool
    scaling: dict[str, float]
    pixel_size: float | None
    given_size: float | None
    invert: bool
    probability: bool
    submission: bool
    labels: bool
    max_pixels: int
    on_sheet: frozenset[int]
    on_page: frozenset[int]
    looked_at: frozenset[int]

    def find_scale(self, file: Path) -> tuple[float, float | None]:
        """Returns what a file's sides are multiplied by for the network, and its pixel size."""
        return find_scale(self.given_size or slices.read_pixel_size(file), self.pixel_size)

    def finish(self, page: Page) -> Page:
        """Predicts a page; of one whose mask is there already, only what is said about it."""
        if page.error:
            return page
        page.in_colour = page.image.ndim == 3
        image = grey.to_grey(page.image)
        normalise = grey.normaliser(grey.sample(image), **self.scaling, invert=self.invert)
        if page.mask is None or self.submission:
            probability = self.predictor(image, page.scale, normalise)
        if page.mask is None:
            page.mask = draw_mask(probability, self.threshold, self.plain)
            if self.probability:
                page.probability = grey.to_bytes(probability)
            if self.labels:
                page.labels = to_labels(probability, page.mask > 0)
                page.cells = measure_cells(page.labels, probability)
        if self.submission:
            page.exact = probability
        number = page.source.first + page.number
        if number in self.looked_at:
            page.looks_inverted = grey.looks_inverted(
                normalise(image[grey.cut_middle(image.shape)]), page.scale
            )
        if number in self.on_sheet:
            thumbnails = make_thumbnail(normalise(thin(image))), make_thumbnail(thin(page.mask))
            page.thumbnails = thumbnails
        if number in self.on_page:
            seen = normalise(thin(image, VIEW))
            page.views = make_views(seen, page.mask, page.probability, page.labels)
        page.image = None
        return page


def find_scale(size: float | None, known: float | None) -> tuple[float, float | None]:
    """Returns what sides are multiplied by for the network, and the pixel size, in nm if known."""
    scale = size / known if size and known else 1.0
    return (1.0 if abs(scale - 1) <= SAME_SIZE else scale), size


def draw_mask(
    probability: np.ndarray, threshold: float, plain: bool, wanted: Area | None = None
) -> np.ndarray:
    """Returns the mask of a map, or of a wanted area in it, as it is written: uint8, 0 and 255."""
    wanted = wanted or whole(probability.shape)
    if plain:
        interior = probability[wanted] > threshold
    else:
        interior = to_mask(probability, threshold, wanted)
    mask = interior.view(np.uint8)
    mask *= np.uint8(slices.INTERIOR)
    return mask


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


def predict_pages(
    sources: Iterable[Source], folder: Path, recipe: Recipe, workers: int
) -> Iterator[Page]:
    """Yields the pages of all files in order, while later ones are computed.

    Args:
        sources: the files.
        folder: of the masks; those that an interrupted command left there are taken as they are.
        recipe: how to predict.
        workers: how many slices are computed at once, while they are small.

    Yields:
        Pages with their masks. Of a file that cannot be read on, the last one has an `error`.
    """
    waiting, pixels = deque(), 0
    with open_threads(workers, recipe.predictor) as pool:
        for page in _read_pages(sources, folder, recipe):
            size = 0 if page.image is None else page.image.size * max(1.0, page.scale**2)
            waiting.append((pool.submit(recipe.finish, page), size))
            pixels += size
            while len(waiting) > 2 * workers or pixels > PIXELS_IN_FLIGHT:
                future, size = waiting.popleft()
                pixels -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()


def _read_pages(sources: Iterable[Source], folder: Path, recipe: Recipe) -> Iterator[Page]:
    """Yields the pages of all files as they are read."""
    for source in sources:
        number = 0
        try:
            scale, size = recipe.find_scale(source.file)
            images = slices.read_pages(source.file, recipe.max_pixels)
            left = _read_left(source, folder, recipe)
            for number, (image, found) in enumerate(zip(images, left, strict=False)):
                if math.prod(image.shape[:2]) * scale**2 > recipe.max_pixels:
                    raise UnreadableError(
                        f"{source.file}: over {recipe.max_pixels:,} px at the model's pixel size; "
                        "cut it into smaller ones, or raise --max-pixels"
                    )
                yield Page(source, number, image, scale=scale, pixel_size=size, **found)
        except UnreadableError as error:
            yield Page(source, number, error=str(error))


def _read_left(source: Source, folder: Path, recipe: Recipe) -> Iterator[dict[str, np.ndarray]]:
    """Yields what the interrupted command that this continues has left of each page."""
    if not source.place(folder, "mask").exists():  # it comes last: without it, nothing counts
        yield from repeat({})
    kinds = ["mask", *["probability"] * recipe.probability, *["labels"] * recipe.labels]
    pages = (slices.read_pages(source.place(folder, kind), recipe.max_pixels) for kind in kinds)
    for found in zip(*pages, strict=False):
        yield dict(zip(kinds, found, strict=True))


def find_files(source: Path, max_pixels: int) -> tuple[list[Source], list[str]]:
    """Returns the `Source` of each usable file, and why the others are not."""
    if not source.exists():
        raise slices.UserError(f"{source}: no such file or folder; name the slices to predict")
    sources, failed, taken, first = [], [], {}, 0
    for file in slices.list_images(source) if source.is_dir() else [source]:
        try:
            pages = slices.count_pages(file, max_pixels)
        except UnreadableError as error:
            failed.append(str(error))
            continue
        target = f"{file.stem}.png" if pages == 1 else f"{file.stem}.tif"
        other = taken.setdefault(file.stem.casefold(), file)
        if other != file:
            raise slices.UserError(
                f"{other} and {file.name} would both be written to {target}; rename one of them"
            )
        sources.append(Source(file, target, pages, first))
        first += pages
    return sources, failed
