"""The end of a training: thresholds chosen on the held-out slices, scores, pictures, run.json."""

import shlex
from pathlib import Path

import keras

from membrane import metrics, runs
from membrane.inference.masks import precompute_segmentation
from membrane.inference.precision import with_dtype
from membrane.inference.predictor import Predictor
from membrane.io.normalization import DEVIATION, MEAN
from membrane.io.writers import atomic_write, write_json
from membrane.viewer import plots


def calibrate_and_save(
    folder: Path, record: dict, network: keras.Model, held_out, history: list[dict]
) -> None:
    """Chooses the thresholds, writes model, pictures and run.json, and prints the scores.

    The thresholds are chosen on `held_out`, `data.Pairs` that may be empty. They and the scores
    are added to the record, for run.json. The history has a row per epoch.
    """
    with atomic_write(folder / "model.keras") as part:
        with_dtype(network, "float32").save(part)
    plots.draw_curves(folder / "curves.png", history)
    record |= {"tta": True, "scaling": {"mean": MEAN, "deviation": DEVIATION}}
    if held_out.names:
        _calibrate(folder, record, network, held_out)
    if threshold := record["flags"]["threshold"]:
        record |= {"threshold": threshold, "threshold_without_tta": threshold}
    write_json(folder / "run.json", record)
    if history[-1]["membrane_iou"] < 0.1:  # of the training tiles: it has failed
        print(
            "Note: it finds hardly any membrane, even on its own tiles; train longer, or with a "
            "third of the --learning-rate"
        )
    shown = runs.display_path(folder)
    pictures = f"{shown}/validation.png, curves.png" if held_out.names else f"{shown}/curves.png"
    print(f"Threshold on P(interior): {record['threshold']:g}")
    print(f"Pictures to look at: {pictures}")
    print(f"Next: python predict.py --model {shlex.quote(shown)}")


def _calibrate(folder: Path, record: dict, network: keras.Model, held_out) -> None:
    """Scores the held-out slices, chooses the thresholds on them, draws them, prints the scores."""
    print(
        f"\nValidation scores on the {len(held_out.names)} held-out slices (leave-one-out: each "
        "slice's threshold chosen on the others; oracle: the best one for all)"
    )
    for tta, end, title in ((False, "_without_tta", ""), (True, "", ", 8 flips averaged")):
        predict = Predictor(network, tta=tta)
        maps = [predict(image) for image in held_out.images]
        segmentations = [precompute_segmentation(one) for one in maps]
        chosen = metrics.calibrate(held_out.labels, segmentations)
        record |= {f"threshold{end}": chosen["threshold"], f"validation{end}": chosen}
        quoted, oracle = (
            f"{scores['v_rand']:.4f} / {scores['v_info']:.4f}" if scores else "needs two slices"
            for scores in (chosen["leave_one_out"], chosen["oracle"])
        )
        print(f"  V_rand / V_info{title}: leave-one-out {quoted}, oracle {oracle}")
    plots.draw_validation_sheet(
        folder / "validation.png",
        held_out.names,
        held_out.images,
        held_out.labels,
        maps,
        [segment(chosen["threshold"]) for segment in segmentations],
        chosen["slices"],
    )
