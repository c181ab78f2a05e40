"""Scores masks, or probability maps, against labels as the ISBI-2012 challenge scored them.

python evaluate.py MASKS LABELS                      folders or stacks, paired by name
python evaluate.py PROBABILITY LABELS --threshold T  8-bit, 16-bit or float maps of P(interior)

The page beside the masks, index.html, then shows each slice's scores, too.
"""

import argparse
import sys

from membrane import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = cli.Parser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("predictions", type=cli.path, metavar="PREDICTIONS", help="folder or stack")
    add("labels", type=cli.path, metavar="LABELS", help="folder or stack: 0 = membrane")
    add("--threshold", type=cli.fraction, metavar="T", help="on P(interior), for maps")
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
    from membrane.io.labels import to_interior, to_probability
    from membrane.io.readers import natural_key, read_named
    from membrane.io.writers import write_json

    if args.json and args.json.exists():
        raise UserError(f"{args.json}: exists, and nothing is overwritten; name another file")
    predictions = dict(read_named(args.predictions))
    truth = dict(read_named(args.labels))
    if args.predictions.is_file() and args.labels.is_file() and len(predictions) == len(truth):
        truth = dict(zip(predictions, truth.values(), strict=True))  # two stacks, page by page
    missing = sorted(predictions.keys() - truth.keys(), key=natural_key)
    if missing:
        raise UserError(
            f"{args.predictions}: {missing[0]} has no label of that name in {args.labels}; "
            "predictions and labels are paired by name"
        )
    for name, image in predictions.items():
        if image.shape[:2] != truth[name].shape[:2]:
            raise UserError(
                f"{name}: prediction {image.shape[:2]}, label {truth[name].shape[:2]} (height, "
                "width); both must have the same size"
            )
    labels = [to_interior(truth[name], f"label {name}") for name in predictions]

    is_map = any(len(np.unique(image)) > 2 for image in predictions.values())
    if is_map and args.threshold is None:
        raise UserError(f"{args.predictions}: probability maps; give --threshold T")
    if not is_map and args.threshold is not None:
        raise UserError(f"{args.predictions}: masks already; leave out --threshold")
    summary = {"threshold": args.threshold}
    if args.threshold is None:
        masks = [to_interior(image, f"mask {name}") for name, image in predictions.items()]
    else:
        maps = [to_probability(image, name) for name, image in predictions.items()]
        masks = [probability > args.threshold for probability in maps]
        candidates = sorted({*metrics.THRESHOLDS, args.threshold})
        oracle = metrics.calibrate(labels, [one.__gt__ for one in maps], candidates)["oracle"]
        summary["v_rand_oracle"] = oracle["v_rand"]
        summary["threshold_oracle"] = oracle["v_rand_threshold"]
        summary["v_info_oracle"] = oracle["v_info"]
    scores = [metrics.score_slice(label, mask) for label, mask in zip(labels, masks, strict=True)]
    summary = metrics.mean_scores(scores) | summary

    page = args.predictions / "index.html"
    if page.is_file() and args.threshold is None:
        from membrane.viewer.page import add_scores  # and Matplotlib, for nothing else here

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
        write_json(args.json, {**summary, "slices": rows})
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
