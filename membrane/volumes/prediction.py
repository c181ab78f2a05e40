"""Predicts a volume: plans its blocks, runs them, writes the record and the pictures."""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import shutil
import time
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from membrane import folders, runs
from membrane.errors import UnreadableError, UserError
from membrane.inference import outputs
from membrane.inference.batch import check_scaled
from membrane.inference.corrections import read_corrections
from membrane.inference.entries import join_windows
from membrane.inference.predictor import Predictor
from membrane.inference.sources import find_sources, list_keys
from membrane.io.normalization import middle_region
from membrane.io.pixel_size import find_scale
from membrane.io.readers import is_zarr, natural_key
from membrane.viewer.page import is_editable
from membrane.viewer.plots import make_thumbnail
from membrane.volumes import blocks, labels, pyramid, store
from membrane.volumes.jobs import SIDE, Job, choose_block
from membrane.volumes.scheduler import open_local, run_job

MARKERS = 3  # which version of them: a job with others is not gone on with


def predict_volume(
    args: argparse.Namespace,
    predictor: Predictor,
    workers: int,
    model: Path,
    record: dict,
    metadata: dict,
    device: str,
    threshold_map: Callable,
) -> int:
    """Predicts a volume block by block, writes OME-Zarr, record and contact sheet.

    `workers` blocks are predicted at once here, while they are small. The workers of a cluster load
    the network from the path `model`. `metadata` is what is known of this prediction, `device` what
    computes here, and `threshold_map` as `Job` has it.

    Returns:
        The exit status.
    """
    (path,) = args.input
    source = store.open_volume(path, args.max_pixels, args.channel)
    size = (args.pixel_size,) * 2 if args.pixel_size else source.pixel_size
    scale = find_scale(size, record.get("pixel_size"))
    check_scaled(path, source.shape[1:], scale, args.max_pixels)
    source = dataclasses.replace(source, voxel=(source.voxel[0], *(size or (None, None))))
    slices = _list_slices(args, source)
    shown = outputs.choose_listed(source.shape[0], math.prod(source.shape[1:]))
    job = Job(
        flags=args,
        source=path.resolve(),
        state=folders.fingerprint(source.files),
        model=model.resolve(),
        masks=Path(f"{folders.output_name(args.input)}.zarr"),
        threshold_map=threshold_map,
        scaling=record.get("scaling", {}),
        scale=scale,
        block=choose_block(source.shape, scale),
        levels=pyramid.plan_levels(source.shape, source.voxel),
        names={z: one for z, (one, _) in enumerate(slices) if args.corrections or z in shown},
        shown=frozenset(shown),
        corrections=read_corrections(args.corrections, dict(slices)),
    )
    if args.labels and job.block[1:] != source.shape[1:]:
        raise UserError(
            f"{path}: --labels: of volumes whose slices have no side over {SIDE} px; these have "
            f"{source.shape[1]}x{source.shape[2]}"
        )
    for note in source.notes:
        print(f"Note: {note}")
    if args.dry_run:
        print("\n".join(blocks.describe(job, source, predictor, workers)))
        return 0
    metadata |= {"shape": list(source.shape), "block": list(job.block), "markers": MARKERS}
    folder = folders.claim_output(args.output, args.input, metadata, source.files)
    print(f"Device: {args.scheduler or device}\nMasks: {runs.display_path(folder)}", flush=True)
    if note := outputs.describe_scale(path.name, size, record.get("pixel_size"), scale):
        print(f"Note: {note}")
    job = dataclasses.replace(job, masks=folder.resolve() / job.masks)
    sample = outputs.choose_evenly(source.shape[0], outputs.POLARITY_SAMPLE)
    inverted = [f"z {z}" for z in sample if blocks.looks_inverted(job, source, z)]
    outputs.note_inverted(inverted, sample, args.invert)
    began = time.monotonic()
    if args.scheduler:
        from membrane.volumes.dask_cluster import open_cluster

        pool = open_cluster(job, args.scheduler)
    else:
        pool = open_local(job, source, predictor, workers)
    with outputs.show_progress(math.prod(source.shape) / 1e6, " Mpixel") as progress:
        membrane, failed, precisions, agreed, entries = run_job(job, source, pool, progress.update)
    seconds = time.monotonic() - began
    outputs.note_neighbours(agreed)
    if len(precisions) > 1:
        print(
            f"Note: parts were computed in {' and '.join(sorted(precisions))}, by workers of "
            "different kinds: masks differ in about one pixel of a thousand from those of one kind"
        )
    if not failed:
        if args.labels:
            outputs.note_objects(labels.number_objects(job, source, args.slice_thickness))
        entries = [one | {"key": slices[one["slice"]][1]} for one in entries]
        _draw(job, source, membrane, metadata, entries)
        outputs.finish_metadata(folder, metadata, device, membrane, failed)
        shutil.rmtree(job.markers, ignore_errors=True)
    return outputs.report(folder, membrane, failed, seconds)


def _list_slices(args, source: store.Volume) -> list[tuple[str, str]]:
    """Returns the name and the key of each slice on the page: of a folder or stack as without Zarr.

    Those of a Zarr, and where two have one name, are told from others by their number, shape, and
    what the middles of the first and the last one show.
    """
    if not is_zarr(args.input[0]):
        try:
            usable, _ = find_sources(source.files, args.max_pixels, args.channel)
            return list(list_keys(usable).items())
        except UserError:  # two slices of one name
            if args.corrections:
                raise
    depth, *shape = source.shape
    state = hashlib.sha256(repr(source.shape).encode())
    for z in (0, depth - 1):
        with contextlib.suppress(UnreadableError):  # is said when its block's turn comes
            state.update(source.read(slice(z, z + 1), middle_region(shape)).tobytes())
    return [(f"z {z}", state.hexdigest()[:16]) for z in range(depth)]


def _draw(job: Job, source: store.Volume, membrane: dict, metadata: dict, shown: list) -> None:
    """Draws the contact sheet, and the page of what the blocks have made to be corrected."""
    folder, sheet = job.masks.parent, []
    for z in outputs.choose_evenly(source.shape[0], outputs.SHEET_SLICES):
        image, mask = blocks.show(job, source, z)
        sheet.append((f"z {z}", make_thumbnail(image), make_thumbnail(mask)))
    shown.sort(key=lambda one: (one["slice"], natural_key(one["place"])))
    if not is_editable(source.shape[1:]):
        slices = [list(windows) for _, windows in groupby(shown, itemgetter("slice"))]
        shown = []
        for windows in slices:
            fraction = membrane[f"z {windows[0]['slice']}"]
            shown += [join_windows(folder, windows, fraction).write(folder), *windows]
    outputs.show(folder, sheet, shown, len(membrane), metadata)
