"""How a volume is cut into blocks, and which of them are done.

A block is a range of z with a region of rows and columns: what is written at once. A task is its
corners, not its pixels; whoever gets it reads what it needs, predicts slice by slice, writes the
block, and then its marker. So at any moment the markers say what is done, and a run that was
stopped goes on with the rest.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from membrane.inference.corrections import Corrections
from membrane.inference.sources import Source
from membrane.io.writers import write_json
from membrane.runs import METADATA_DIR
from membrane.viewer.page import VIEW

SIDE = 2 * VIEW  # px; longer slices are cut, where the page's windows start, and so a mask's
DEPTH, VOXELS = 64, 2**27  # a block has as many slices, or as are so many voxels, at most
MIN_DEPTH = 16  # slices, that a block of a short volume has, for several to be under way at once


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
    def region(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.start[1], self.stop[1]), slice(self.start[2], self.stop[2])


@dataclass(frozen=True)
class Job:
    """What any process must know to predict any block of a volume."""

    flags: argparse.Namespace  # of predict.py, its `threshold` and `tta` settled
    source: Path  # of the volume
    state: str  # that changes when the volume does
    model: Path  # of the network
    masks: Path  # the OME-Zarr that is written
    threshold_map: Callable  # `predict.threshold_map`
    scaling: dict[str, float]  # `make_normalizer`'s mean and deviation
    scale: tuple[float, float]  # of height and width, to the pixels the network is trained at
    block: tuple[int, int, int]  # shape of the blocks, (z, y, x), of `choose_block`
    levels: Sequence[tuple]  # of the pyramid, of `pyramid.plan_levels`
    names: dict[int, str] = field(default_factory=dict)  # on the page, of shown or corrected slices
    shown: frozenset[int] = frozenset()  # the slices on the page, whose decisions are written
    corrections: Corrections = field(default_factory=Corrections)  # of masks, by those names

    @property
    def outputs(self) -> list[Path]:
        """The OME-Zarr of the masks, and that of P(interior) if wanted."""
        probability = self.masks.parent / "probability" / self.masks.name
        return [self.masks, probability] if self.flags.probability else [self.masks]

    @property
    def markers(self) -> Path:
        """The folder of the finished blocks' markers."""
        return self.masks.parent / METADATA_DIR / "blocks"

    @property
    def own_labels(self) -> Path:
        """The OME-Zarr of the cells, as each slice numbers them by itself, while that lasts."""
        return self.masks.parent / METADATA_DIR / "labels" / self.masks.name

    def cells(self, block: Block) -> Path:
        """Returns the table of a block's cells, numbered in the same way."""
        return self.own_labels.with_name(f"{block.name}.csv")

    def slice_source(self, z: int) -> Source:
        """Returns a slice as the page has it."""
        return Source(self.source, f"{self.names.get(z, '')}.png", 1, z)

    def cut(self, level: int) -> Iterator[Block]:
        """Yields the blocks of a level, slice by slice."""
        shape, _ = self.levels[level]
        starts = (range(0, side, step) for side, step in zip(shape, self.block, strict=True))
        for start in product(*starts):
            ends = zip(start, self.block, shape, strict=True)
            yield Block(level, start, tuple(min(a + step, side) for a, step, side in ends))


def choose_block(
    shape: tuple[int, int, int], scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int, int]:
    """Chooses the shape of the blocks, (z, y, x).

    Large slices are cut into parts that start where the page's windows do, which are some of a
    mask's. The fewer parts and the deeper, the less is computed twice: what lies around a block,
    and the slices before and after it. A slice that is resampled is never cut.

    Args:
        shape: of the volume, (z, y, x).
        scale: of height and width, to the pixels that the network is trained at.
    """
    sides = []
    for side in shape[1:]:
        count = 1 if scale != (1.0, 1.0) else -(-side // SIDE)
        sides.append(side if count == 1 else -(-side // (count * VIEW)) * VIEW)
    deepest = min(max(shape[0] // 8, MIN_DEPTH), DEPTH, shape[0])
    return max(1, min(deepest, VOXELS // math.prod(sides))), *sides


def read_marker(job: Job, block: Block) -> dict | None:
    """Returns what a finished block's task returned, None of one that is not finished."""
    try:
        return json.loads((job.markers / f"{block.name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def mark(job: Job, block: Block, content: dict) -> dict:
    """Writes that a block is finished, and returns what its task returns."""
    write_json(job.markers / f"{block.name}.json", content)
    return content
