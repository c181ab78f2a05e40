"""What all readers of images share."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from membrane.errors import UnreadableError, UserError, first_line


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        raise UnreadableError(f"{path}: cannot be read as an image ({first_line(error)})") from None


def check_size(path: Path, size: Sequence[int], max_pixels: int) -> None:
    """Refuses a slice of more pixels before it is decoded."""
    if math.prod(size) > max_pixels:
        raise UnreadableError(
            f"{path}: {'x'.join(map(str, size))} px, over {max_pixels:,}; cut it into smaller "
            "ones, or raise predict.py's --max-pixels"
        )


def without_alpha(image: np.ndarray) -> np.ndarray:
    """Returns (height, width) or (height, width, 3)."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] > 2 else image[..., 0]
