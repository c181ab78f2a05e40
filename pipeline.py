"""Many slices through one network: read ahead, several in flight, handed on in order."""

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
from figures import make_thumbnail, thin
from inference import Predictor, to_mask
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


@dataclass
class Page:
    """One slice on its way; what is not known yet, or not wanted, is None."""

    source: Source
    number: int  # in its file, from 0
    image: np.ndarray | None = None  # (height, width[, 3]), as the file has it
    mask: np.ndarray | None = None  # uint8 (height, width), 255 = interior
    probability: np.ndarray | None = None  # uint8 (height, width)
    scale: float = 1.0  # from the file's pixels to those that the network knows
    pixel_size: float | None = None  # nm
    error: str | None = None  # why the file cannot be read on
    in_colour: bool = False
    looks_inverted: bool = False
    thumbnails: tuple = ()  # of image and mask

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
        probability: whether P(interior) is wanted, too.
        max_pixels: of a slice, and of what the network sees of it.
        on_sheet: the numbers of the pages, among all, that a thumbnail is wanted of, and that
            tell whether membranes are bright.
    """

    predictor: Predictor
    threshold: float
    plain: bool
    scaling: dict[str, float]
    pixel_size: float | None
    given_size: float | None
    invert: bool
    probability: bool
    max_pixels: int
    on_sheet: frozenset[int]

    def find_scale(self, file: Path) -> tuple[float, float | None]:
        """Returns what a file's sides are multiplied by for the network, and its pixel size."""
        size = self.given_size or slices.read_pixel_size(file)
        scale = size / self.pixel_size if size and self.pixel_size else 1.0
        return (1.0 if abs(scale - 1) <= SAME_SIZE else scale), size

    def finish(self, page: Page) -> Page:
        """Predicts a page; of one whose mask is there already, only what is said about it."""
        if page.error:
            return page
        page.in_colour = page.image.ndim == 3
        image = grey.to_grey(page.image)
        normalise = grey.normaliser(image, **self.scaling, invert=self.invert)
        if page.mask is None:
            probability = self.predictor(image, page.scale, normalise)
            if self.plain:
                interior = probability > self.threshold
            else:
                interior = to_mask(probability, self.threshold)
            page.mask = interior.view(np.uint8)
            page.mask *= np.uint8(slices.INTERIOR)
            if self.probability:
                page.probability = grey.to_bytes(probability)
        if page.source.first + page.number in self.on_sheet:
            page.looks_inverted = grey.looks_inverted(normalise(grey.middle(image)), page.scale)
            thumbnails = make_thumbnail(normalise(thin(image))), make_thumbnail(thin(page.mask))
            page.thumbnails = thumbnails
        page.image = None
        return page


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
    pool = ThreadPoolExecutor(workers)
    try:
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
    except BaseException:
        recipe.predictor.stop()  # else the slices in flight would be finished first
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _read_pages(sources: Iterable[Source], folder: Path, recipe: Recipe) -> Iterator[Page]:
    """Yields the pages of all files as they are read."""
    for source in sources:
        number = 0
        try:
            scale, size = recipe.find_scale(source.file)
            known = folder / source.target
            left = known.exists()  # by the interrupted command that this continues
            masks = slices.read_pages(known, recipe.max_pixels) if left else repeat(None)
            images = slices.read_pages(source.file, recipe.max_pixels)
            for number, (image, mask) in enumerate(zip(images, masks, strict=False)):
                if math.prod(image.shape[:2]) * scale**2 > recipe.max_pixels:
                    raise UnreadableError(
                        f"{source.file}: over {recipe.max_pixels:,} px at the model's pixel size; "
                        "cut it into smaller ones, or raise --max-pixels"
                    )
                yield Page(source, number, image, mask, scale=scale, pixel_size=size)
        except UnreadableError as error:
            yield Page(source, number, error=str(error))
