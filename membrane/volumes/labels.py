"""Numbered cells of a volume: slice by slice while its blocks are predicted, then as objects."""

import numpy as np

from membrane.inference.masks import label_cells, measure_cells
from membrane.inference.objects import Tables, link, show_numbers
from membrane.io.writers import open_table
from membrane.volumes import pyramid
from membrane.volumes.jobs import Block, Job
from membrane.volumes.store import Volume


class BlockLabels:
    """The cells of a block's slices, numbered slice by slice; the block has whole slices."""

    def __init__(self, block: Block):
        self.block, self.tables = block, []
        self.labels = np.empty(np.subtract(block.stop, block.start), np.uint32)

    def add(self, z: int, probability: np.ndarray, mask: np.ndarray, blank) -> None:
        """Numbers the cells of a slice, as `label_cells` does."""
        labels = label_cells(probability, mask, blank)
        self.labels[z - self.block.z.start] = labels
        cells = measure_cells(labels, probability)
        self.tables.append({"page": np.full(len(cells["label"]), z + 1)} | cells)

    def write(self, job: Job) -> None:
        """Writes labels and table of the block."""
        pyramid.write_part(job.own_labels, 0, self.block.start, self.labels)
        with open_table(job.cells(self.block)) as write:
            for table in self.tables:
                write(table)


def create(job: Job, source: Volume) -> None:
    """Creates the volume of the cells as each slice numbers them by itself."""
    pyramid.create_volume(job.own_labels, source.voxel, job.levels[:1], job.block, "uint32")


def number_objects(job: Job, source: Volume, thickness: float | None) -> np.ndarray:
    """Links the cells of a volume whose blocks are all done; writes labels, pictures and tables.

    No more than a block of slices is held. The thickness of a slice is in nm; None for that of
    the volume's voxels, if that is known.

    Returns:
        int64 (objects,), the number of slices that each object lies in.
    """
    full = (slice(0, source.shape[1]), slice(0, source.shape[2]))

    def read():
        for block in job.cut(0):
            yield from pyramid.read_part(job.own_labels, 0, (block.z, *full))

    numbers, slices = link(read())
    target = job.masks.parent / "labels" / job.masks.name
    pyramid.create_volume(target, source.voxel, job.levels[:1], job.block, "uint32")
    thickness = thickness or source.voxel[0]
    with Tables(target.parent, slices, thickness) as tables:
        for block in job.cut(0):
            part = pyramid.read_part(job.own_labels, 0, (block.z, *full))
            for z, page in enumerate(part, block.z.start):
                page[:] = numbers[z][page]
            pyramid.write_part(target, 0, block.start, part)
            if shown := job.shown.intersection(range(block.z.start, block.z.stop)):
                masks = pyramid.read_part(job.masks, 0, (block.z, *full))  # chunks are as deep
                for z in shown:
                    file, number = job.slice_source(z).picture_name(0), z - block.z.start
                    show_numbers(job.masks.parent, file, part[number], masks[number])
            tables.add(job.cells(block), numbers, "z {}".format, source.pixel_size)
    return slices[1:]
