"""Measures what decisions on a prediction's page are worth, with the truth as the proofreader.

python benchmarks/proofreading.py --data DIR     after quality.py --only small: its networks

Each block of five slices is predicted by a network that was trained without it. The decisions that
predict.py wrote for its page are taken by the labels, in the page's order or at random, saved as
the page saves them, and applied by predict.py --corrections.
"""

import argparse
import base64
import contextlib
import io
import json
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from quality import BLOCKS, SLICES, load_slices, split_block
from result_tables import HERE, draw_table, write_tables
from skimage.measure import label as connected_components

import predict
from membrane import cli, metrics, runs
from membrane.inference.sources import find_sources, list_files, list_keys
from membrane.io.labels import to_interior
from membrane.io.readers import read_named
from membrane.io.writers import write_json, write_pages
from membrane.viewer.page import EDIT, picture_path, read_edit

RESULT = HERE / "proofreading.json"
COUNTS = (0, 5, 10, 20)  # decisions a slice
WAYS = {"each slice by itself": ["--no-neighbours"], "neighbours": []}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="proofreading.py", description=__doc__)
    add = parser.add_argument
    add("--data", default="kaggle", help="as for train.py; default: %(default)s")
    add("--runs", type=cli.path, default=runs.OUTPUTS / "quality", help="quality.py's networks")
    add("--recipe", default="small", help="which of them; default: %(default)s")
    add("--seed", type=int, default=4, help="of the trainings; default: %(default)s")
    add("--threshold", type=cli.fraction, default=0.4, help="default: %(default)s")
    return cli.run(measure, parser.parse_args(argv), "proofreading.py")


def measure(args: argparse.Namespace) -> int:
    """Scores every way and number of decisions; writes result and table."""
    slices, scores = load_slices(args.data, SLICES), {}
    for block in range(BLOCKS):
        (run,) = args.runs.glob(f"{args.recipe}-{block}-{args.seed}-*/run")
        held_out = [slices[i] for i in split_block(SLICES, block)[1]]
        for way, flags in WAYS.items():
            flags = [*flags, "--model", str(run), "--threshold", str(args.threshold)]
            with tempfile.TemporaryDirectory() as scratch:
                for key, row in score_block(Path(scratch), held_out, flags).items():
                    scores.setdefault((way, *key), []).extend(row)
    rows = []
    for (way, order, count), found in scores.items():
        v_rand, v_info, changed = np.mean(found, 0).round(4).tolist()
        row = {"masks": way, "order": order, "decisions": count, "slices": len(found)}
        rows.append(row | {"v_rand": v_rand, "v_info": v_info, "changed": changed})
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_tables(draw_tables())
    return 0


def score_block(scratch: Path, slices: list[tuple], flags: list[str]) -> dict[tuple, list]:
    """Returns V_rand, V_info and the share of changes, a row per slice, by order and number."""
    labels, found = [to_interior(label, name) for name, _, label in slices], {}
    for order, count in product(("worth", "random"), COUNTS):
        masks, changed = proofread(scratch, slices, flags, count, order)
        each = zip(labels, masks, changed, strict=True)
        found[order, count] = [(*score(label, mask), part) for label, mask, part in each]
    return found


def proofread(
    scratch: Path, slices: list[tuple], flags: list[str], count: int, order: str = "worth"
) -> tuple[list[np.ndarray], list[float]]:
    """Predicts slices, decides by their labels, and predicts them with these corrections.

    Args:
        scratch: a folder, the same one for other counts and orders.
        slices: name, image and label each, of `load_slices`.
        flags: of predict.py.
        count: of decisions a slice.
        order: that of their "worth", or "random".

    Returns:
        The masks, bool (height, width), and the share of decisions that changed something.
    """
    source_folder, first, made, changed = scratch / "slices", scratch / "first", {}, []
    if not first.exists():
        for name, image, _ in slices:
            write_pages(source_folder / f"{name}.png", [image])
        run_predict(source_folder, first, flags)
    sources, _ = find_sources(list_files([source_folder]), sys.maxsize)
    for source, (name, _, label) in zip(sources, slices, strict=True):
        page = read_edit(picture_path(first, source.picture_name(0), EDIT))
        asked = page["decisions"]
        if order == "random":
            asked = np.random.default_rng(0).permutation(asked).tolist()
        made[name] = [decide(one, page, to_interior(label, name)) for one in asked[:count]]
        against = [
            (done["kind"] == "join") != one["joined"]
            for one, done in zip(asked[:count], made[name], strict=True)
        ]
        changed.append(float(np.mean(against or [0])))
    path, folder = scratch / f"{order}-{count}.json", scratch / f"{order}-{count}"
    write_json(path, {"slices": made, "keys": list_keys(sources)})
    run_predict(source_folder, folder, [*flags, "--corrections", str(path)])
    return [to_interior(mask, name) for name, mask in read_named(folder)], changed


def run_predict(source: Path, folder: Path, flags: list[str]) -> None:
    """Runs predict.py; raises if it fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = predict.main([str(source), "--output", str(folder), *flags])
    if status:
        raise RuntimeError(f"predict.py: exit status {status}")


def score(label: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Returns V_rand and V_info of a mask."""
    scores = metrics.score_slice(label, mask)
    return scores["v_rand"], scores["v_info"]


def decide(asked: dict, page: dict, label: np.ndarray) -> dict:
    """Returns the operation that the label asks for: one cell if most of both sides is in one."""
    mask = read_mask(page)
    mask.ravel()[asked["pixels"]] = False  # so that the sides are two
    cells = connected_components(mask, connectivity=1)
    true = connected_components(label, connectivity=1)
    most = []
    for x, y in asked["sides"]:
        under = true[(cells == cells[y, x]) & (true > 0)]
        most.append(np.bincount(under).argmax() if under.size else None)
    one_cell = None not in most and most[0] == most[1]
    return {"kind": "join" if one_cell else "separate"} | {
        name: asked[name] for name in ("at", "sides", "pixels")
    }


def read_mask(page: dict) -> np.ndarray:
    """Returns the mask that the page of a slice shows, bool (height, width)."""
    content = base64.b64decode(page["mask"].partition(",")[2])
    return np.array(Image.open(io.BytesIO(content))) > 0


def draw_tables() -> dict[str, str]:
    """Returns the table by its name."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))
    header = (
        "masks",
        "decisions a slice",
        "in the page's order",
        "changed",
        "the same 20 in random order",
    )
    lines = []
    for row in rows:
        if row["order"] == "worth":
            same = ("masks", "decisions")
            (other,) = (
                one
                for one in rows
                if one["order"] == "random" and all(one[k] == row[k] for k in same)
            )
            scores = [f"{one['v_rand']:.4f} / {one['v_info']:.4f}" for one in (row, other)]
            lines.append(
                [row["masks"], row["decisions"], scores[0], f"{row['changed']:.0%}", scores[1]]
            )
    return {"proofreading": draw_table(header, lines)}


if __name__ == "__main__":
    sys.exit(main())
