"""Scores masks, or probability maps, against labels as the ISBI-2012 challenge scored them.

python evaluate.py MASKS LABELS                      folders, stacks or Zarrs, paired by name
python evaluate.py PROBABILITY LABELS --threshold T  8-bit, 16-bit or float maps of P(interior)

The page beside the masks, index.html, then shows each slice's scores, too.
"""

import argparse
import sys
from pathlib import Path

from membrane import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = cli.Parser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("predictions", type=cli.path, metavar="PREDICTIONS", help="folder, stack or Zarr")
    labels_help = "folder, stack or Zarr: 0 = membrane, else interior or a cell's number"
    add("labels", type=cli.path, metavar="LABELS", help=labels_help)
    ignore_help = "value of the pixels that are not labelled; default: -1, and 255 beside 0 and 1"
    add("--ignore", type=int, metavar="N", help=ignore_help)
    threshold_help = "on P(interior), pixel by pixel, for maps"
    add("--threshold", type=cli.fraction, metavar="T", help=threshold_help)
    add("--json", type=cli.path, metavar="FILE", help="also write the scores there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(evaluate, parse_args(argv), "evaluate.py")


def evaluate(args: argparse.Namespace) -> int:
    """Pairs, scores and prints; returns the exit status."""
    import numpy as np

    from membrane import metrics
    from membrane.errors import UserError
    from membrane.io import label_checks, labels
    from membrane.io.writers import write_json
    from membrane.runs import CHANCE

    if args.json and args.json.exists():
        raise UserError(f"{args.json}: exists, and nothing is overwritten; name another file")
    page, args.predictions = args.predictions / "index.html", _find_zarr(args.predictions)
    predictions, truth = _read(args.predictions), _read(args.labels)
    unscored = len(truth) - len(predictions)
    found = labels.pair_slices(predictions, truth, (args.predictions, args.labels))
    truth = {f"label {name}": truth[label] for name, label in found.items()}
    read = labels.read_labels(truth, args.ignore)
    interiors, known = zip(*read, strict=True)
    label_checks.check_polarity(interiors, args.labels)

    several = [image for image in predictions.values() if np.unique(image).size > 2]
    summary = {}
    if args.threshold is None:
        no_masks = UserError(f"{args.predictions}: probability maps; give --threshold T")
        # what has 8 bits and more than two values is a map of P(interior), never numbers of cells
        if any(image.dtype.itemsize == 1 for image in several):
            raise no_masks
        named = predictions.items()
        try:
            masks = [labels.to_interior(image, f"mask {name}") for name, image in named]
        except UserError as error:
            raise (no_masks if several else error) from None
        label_checks.check_polarity(masks, args.predictions)
    else:
        if not several:
            raise UserError(f"{args.predictions}: masks already; leave out --threshold")
        maps = [labels.to_probability(image, name) for name, image in predictions.items()]
        masks = [probability > args.threshold for probability in maps]
        candidates = sorted({*metrics.THRESHOLDS, args.threshold})
        segmentations = [one.__gt__ for one in maps]
        oracle = metrics.calibrate(interiors, segmentations, candidates, known)["oracle"]
        summary["threshold"] = args.threshold
        summary["v_rand_oracle"] = oracle["v_rand"]
        summary["threshold_oracle"] = oracle["v_rand_threshold"]
        summary["v_info_oracle"] = oracle["v_info"]
    scores = list(map(metrics.score_slice, interiors, masks, known))
    if several and args.threshold is None:  # cells, whose membrane is a line by definition
        scores = [{key: one[key] for key in metrics.SEGMENTATION_SCORES} for one in scores]
    summary = metrics.mean_scores(scores) | summary

    if page.is_file() and args.threshold is None:
        from membrane.viewer.page import add_scores  # and Matplotlib, for nothing else here

        keys = "v_rand", "v_info"  # none of them where they are not defined: NaN is no JSON
        shown = [{key: one[key] for key in keys if one[key] == one[key]} for one in scores]
        add_scores(page, dict(zip(predictions, shown, strict=True)))

    _print_table([*predictions, "mean"], [*scores, summary])
    if unscored:
        print(f"\nNote: {unscored} labels have no prediction and are not scored")
    if summary["v_rand"] < CHANCE:
        print("\nNote: hardly better than chance; do these labels belong to these slices?")
    print()
    for key, value in summary.items():
        print(f"{key}: {_show(value)}")
    if args.json:
        rows = [{"name": name, **row} for name, row in zip(predictions, scores, strict=True)]
        write_json(args.json, {**summary, "slices": rows})
    return 0


def _find_zarr(path: Path) -> Path:
    """Returns the one Zarr of what `predict.py` has written into a folder; else the path itself."""
    from membrane.io.readers import is_zarr

    found = [] if is_zarr(path) else list(path.glob("*.zarr"))
    return found[0] if len(found) == 1 else path


def _read(path: Path) -> dict:
    """Returns the slices of a folder, stack or Zarr by name."""
    from membrane.io.readers import MAX_PIXELS, is_zarr, read_named

    if not is_zarr(path):
        return dict(read_named(path))
    cli.check_installed(("zarr", "ome_zarr"), "requirements/cluster.txt")
    from membrane.inference.tiling import full_region
    from membrane.volumes.store import open_volume

    volume = open_volume(path, MAX_PIXELS)
    slices = volume.read(slice(0, volume.shape[0]), full_region(volume.shape[1:]))
    return {f"z {z}": image for z, image in enumerate(slices)}


def _print_table(names: list[str], rows: list[dict[str, float]]) -> None:
    width = max(map(len, [*names, "slice"]))
    columns = list(rows[0])
    print("slice".ljust(width), *(column.rjust(13) for column in columns))
    for name, row in zip(names, rows, strict=True):
        print(name.ljust(width), *(_show(row[column]).rjust(13) for column in columns))


def _show(value: float | None) -> str:
    return "none" if value is None or value != value else f"{value:.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
