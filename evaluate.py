"""Scores masks, or probability maps, against labels as the ISBI-2012 challenge scored them.

python evaluate.py MASKS LABELS                      folders or stacks, paired by name
python evaluate.py PROBABILITY LABELS --threshold T  8-bit, 16-bit or float maps of P(interior)

The page beside the masks, index.html, then shows each slice's scores, too.
"""

import argparse
import sys

import doors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("predictions", type=doors.path, metavar="PREDICTIONS", help="folder or stack")
    add("labels", type=doors.path, metavar="LABELS", help="folder or stack: 0 = membrane")
    add("--threshold", type=doors.fraction, metavar="T", help="on P(interior), for maps")
    add("--json", type=doors.path, metavar="FILE", help="also write the scores there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(evaluate, parse_args(argv), "evaluate.py")


def evaluate(args: argparse.Namespace) -> int:
    """Pairs, scores and prints; returns the exit status."""
    import numpy as np

    import files
    import grey
    import metrics
    import slices

    if args.json and args.json.exists():
        raise slices.UserError(
            f"{args.json}: exists, and nothing is overwritten; name another file"
        )
    predictions = dict(slices.read_named(args.predictions))
    truth = dict(slices.read_named(args.labels))
    if args.predictions.is_file() and args.labels.is_file() and len(predictions) == len(truth):
        truth = dict(zip(predictions, truth.values(), strict=True))  # two stacks, page by page
    missing = sorted(predictions.keys() - truth.keys(), key=slices.natural_key)
    if missing:
        raise slices.UserError(
            f"{args.predictions}: {missing[0]} has no label of that name in {args.labels}; "
            "predictions and labels are paired by name"
        )
    for name, image in predictions.items():
        if image.shape[:2] != truth[name].shape[:2]:
            raise slices.UserError(
                f"{name}: prediction {image.shape[:2]}, label {truth[name].shape[:2]} (height, "
                "width); both must have the same size"
            )
    labels = [grey.to_interior(truth[name], f"label {name}") for name in predictions]

    is_map = any(len(np.unique(image)) > 2 for image in predictions.values())
    if is_map and args.threshold is None:
        raise slices.UserError(f"{args.predictions}: probability maps; give --threshold T")
    if not is_map and args.threshold is not None:
        raise slices.UserError(f"{args.predictions}: masks already; leave out --threshold")
    summary = {"threshold": args.threshold}
    if args.threshold is None:
        masks = [grey.to_interior(image, f"mask {name}") for name, image in predictions.items()]
    else:
        maps = [grey.to_probability(image, name) for name, image in predictions.items()]
        masks = [probability > args.threshold for probability in maps]
        candidates = sorted({*metrics.THRESHOLDS, args.threshold})
        best = metrics.calibrate(labels, [one.__gt__ for one in maps], candidates)["best"]
        summary["v_rand_best"] = best["v_rand"]
        summary["threshold_best"] = best["v_rand_threshold"]
        summary["v_info_best"] = best["v_info"]
    scores = [metrics.score_slice(label, mask) for label, mask in zip(labels, masks, strict=True)]
    summary = metrics.mean_scores(scores) | summary

    page = args.predictions / "index.html"
    if page.is_file() and args.threshold is None:
        from figures import add_scores  # and Matplotlib, for nothing else here

        shown = [{key: one[key] for key in ("v_rand", "v_info")} for one in scores]
        add_scores(page, dict(zip(predictions, shown, strict=True)))

    _print_table([*predictions, "mean"], [*scores, summary])
    if unscored := len(truth) - len(predictions):
        print(f"\nNote: {unscored} labels have no prediction and are not scored")
    print()
    for key, value in summary.items():
        print(f"{key}: {_show(value)}")
    if args.json:
        rows = [{"name": name, **row} for name, row in zip(predictions, scores, strict=True)]
        files.write_json(args.json, {**summary, "slices": rows})
    return 0


def _print_table(names: list[str], rows: list[dict[str, float]]) -> None:
    width = max(map(len, [*names, "slice"]))
    columns = list(rows[0])
    print("slice".ljust(width), *(column.rjust(13) for column in columns))
    for name, row in zip(names, rows, strict=True):
        print(name.ljust(width), *(_show(row[column]).rjust(13) for column in columns))


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
