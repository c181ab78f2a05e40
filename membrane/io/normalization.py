"""Grey values of every dtype and exposure, brought to the scale that the network is trained on."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.measure import euler_number

from membrane.io.tissue import fill_blank, find_blank

MEAN, DEVIATION = 0.491, 0.171  # of ISBI-2012's grey values / 255; every slice is brought to these
LIMITS = -1.0, 2.0  # of normalised grey values
PATCH, PATCHES = 256, 64  # px, and their number; larger slices' grey values are measured on these
LOOK = 1024  # px, the side of the part that tells a slice's polarity
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's convert("L")


def to_grey(image: np.ndarray) -> np.ndarray:
    """Returns (height, width): grey as it is, of (height, width, 3) the luma."""
    if image.ndim == 2:
        return image
    if (image == image[..., :1]).all():  # grey saved as colour stays exact
        return image[..., 0]
    return image @ np.asarray(LUMA, np.float32)


def normalize(image: np.ndarray, mean: float = MEAN, deviation: float = DEVIATION) -> np.ndarray:
    """Brings one slice to the grey values that the network is trained on.

    They are measured on its tissue alone; what is none becomes the mean.

    Args:
        image: (height, width), or (height, width, 3) for colour; any real dtype, any range.
        mean: wanted mean, 0 black to 1 white.
        deviation: wanted standard deviation.

    Returns:
        float32 (height, width), mostly in [0, 1], never outside [-1, 2].
    """
    image = to_grey(image)
    sample = sample_pixels(image)
    image = fill_blank(image, find_blank(image), sample)
    return make_normalizer(sample, mean, deviation)(image)


def sample_regions(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Returns the rows and columns of the parts of a slice that its grey values are measured on.

    All of it, or, from 4 megapixels on, 64 evenly placed patches: few pixels, in few chunks of a
    volume, and the same however the slice is read.
    """
    if math.prod(shape) <= PATCHES * PATCH**2:
        return [np.s_[0 : shape[0], 0 : shape[1]]]
    down = min(round(PATCHES**0.5), max(1, shape[0] // PATCH))
    counts = down, PATCHES // down
    tops, lefts = (
        np.linspace(0, max(0, side - PATCH), count).astype(int).tolist()
        for side, count in zip(shape, counts, strict=True)
    )
    return [np.s_[top : top + PATCH, left : left + PATCH] for top in tops for left in lefts]


def sample_pixels(image: np.ndarray) -> np.ndarray:
    """Returns the pixels, as one row, that the grey values of a slice are measured on.

    Those of its `sample_regions` that are tissue; if these have none, all that are.
    """
    sample = pixels_of_tissue([image[part] for part in sample_regions(image.shape)])
    return sample if sample.size else pixels_of_tissue([image], last=True)


def pixels_of_tissue(parts: Sequence[np.ndarray], last: bool = False) -> np.ndarray:
    """Returns the pixels, as one row, of parts of slices that are tissue.

    Where nothing is, none; with `last`, one zero, so that there is something to measure.
    """
    blanks = map(find_blank, parts)
    tissue = [
        part.ravel() if blank is None else part[~blank]
        for part, blank in zip(parts, blanks, strict=True)
    ]
    tissue = np.concatenate(tissue)
    return tissue if tissue.size or not last else np.zeros(1, tissue.dtype)


def make_normalizer(
    sample: np.ndarray, mean: float = MEAN, deviation: float = DEVIATION, invert: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that normalises a slice, or any part of it.

    Its mean and standard deviation, measured between its 1st and 99th percentile, become `mean`
    and `deviation`; so neither the dtype nor the exposure matters. A constant slice becomes `mean`.
    The sample is what `sample_pixels` gives, in the slice's dtype; `invert` makes bright dark.
    """
    exact_in_float32 = sample.dtype.itemsize <= 2
    sample = sample.view(np.uint8) if sample.dtype == np.bool_ else sample
    unit = 1.0
    if sample.dtype.kind == "f":  # a power of two, so nothing is rounded, by which none overflows
        sample = sample.astype(np.float64)
        unit = 2.0 ** np.clip(np.frexp(np.abs(sample).max())[1], -1000, 1000)
        sample /= unit
    pixels = np.clip(sample, *np.percentile(sample, (1, 99)), dtype=np.float64)
    centre, spread = pixels.mean(), pixels.std()
    deviation = -deviation if invert else deviation
    gain = deviation / spread if spread > 1e-9 * abs(centre) else 0.0
    dtype = np.float32 if exact_in_float32 else np.float64
    gain, offset = dtype(gain / unit), dtype(mean - gain * centre)

    def apply(part: np.ndarray) -> np.ndarray:
        part = part.astype(dtype)
        part *= gain
        part += offset
        return np.clip(part, *LIMITS, out=part).astype(np.float32, copy=False)

    return apply


def middle_region(shape: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns in the middle of a slice, as much as `looks_inverted` needs."""
    margins = [(side, max(0, (side - LOOK) // 2)) for side in shape]
    return tuple(slice(start, min(start + LOOK, side)) for side, start in margins)


def looks_inverted(image: np.ndarray, scale: tuple[float, float] = (1.0, 1.0)) -> bool:
    """Tells whether a slice seems to have bright membranes on dark cells.

    Membranes form a net whose meshes are the cells. So what is darker than its surroundings has
    few pieces and many holes, what is brighter many pieces and few holes: their Euler numbers
    differ. In an inverted slice it is the other way round.

    Args:
        image: float32 (height, width) as `normalize` gives; its `middle_region` is enough.
        scale: what its height and width are multiplied by, for pixels of the size that the network
            knows.
    """
    if scale != (1.0, 1.0):
        image = resize(image, scale_shape(image.shape, scale))
    smooth = ndimage.gaussian_filter(image, 3.0)[::2, ::2]
    detail = smooth - ndimage.gaussian_filter(smooth, 10.0)
    dark, bright = euler_number(detail < -0.03, 1), euler_number(detail > 0.03, 1)
    return bool(dark - bright > 0.1 * (abs(dark) + abs(bright)))


def scale_shape(shape: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int]:
    """Returns height and width, each multiplied by its own factor, at least 1."""
    height, width = (max(1, round(side * by)) for side, by in zip(shape, scale, strict=True))
    return height, width


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns float32 (height, width) resampled to `shape`; shrinking averages."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.float32))
    return np.asarray(picture.resize(shape[::-1], Image.Resampling.BICUBIC))


def to_bytes(probability: np.ndarray) -> np.ndarray:
    """Returns P(interior) in [0, 1] as uint8, 255 = certainly interior."""
    result = np.empty(probability.shape, np.uint8)
    for top in range(0, len(result), LOOK):  # a huge map is not doubled
        result[top : top + LOOK] = np.round(probability[top : top + LOOK] * 255)
    return result
