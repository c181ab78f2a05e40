"""What a training leaves: the model, its thresholds, pictures, scores."""

import shlex
from pathlib import Path

import keras

import figures
import metrics
import runs
import unet
from data import Pairs
from files import whole_file, write_json
from grey import DEVIATION, MEAN
from inference import Predictor
from masks import make_masker

LEARNT = 0.1  # membrane IoU on the training tiles; one below is a failed training


def finish(
    folder: Path, record: dict, network: keras.Model, held_out: Pairs, history: list[dict]
) -> None:
    """Writes model, pictures and run.json, chooses the thresholds, says what came of it.

    Args:
        folder: of the run.
        record: for its run.json, that gets the thresholds and the scores.
        network: as it was trained.
        held_out: the slices to choose the thresholds on; there may be none.
        history: as `fit.fit` gives.
    """
    with whole_file(folder / "model.keras") as part:
        unet.with_dtype(network, "float32").save(part)
    figures.draw_curves(folder / "curves.png", history)
    record |= {"tta": True, "scaling": {"mean": MEAN, "deviation": DEVIATION}}
    if held_out.names:
        _calibrate(folder, record, network, held_out)
    if threshold := record["flags"]["threshold"]:
        record |= {"threshold": threshold, "threshold_without_tta": threshold}
    write_json(folder / "run.json", record)
    if history[-1]["membrane_iou"] < LEARNT:
        print(
            "Note: it finds hardly any membrane, even on its own tiles; train longer, or with a "
            "third of the --learning-rate"
        )
    print(f"Threshold on P(interior): {record['threshold']:g}")
    looks = (
        f"{runs.shown(folder / 'validation.png')}, curves.png" if held_out.names else "curves.png"
    )
    print(f"Pictures to look at: {looks}")
    print(f"Next: python predict.py --model {shlex.quote(runs.shown(folder))}")


def _calibrate(folder: Path, record: dict, network: keras.Model, held_out: Pairs) -> None:
    """Scores the held-out slices, chooses the thresholds on them, draws them, prints the scores."""
    calibration = {}
    for tta in (False, True):
        predict = Predictor(network, tta=tta)
        probabilities = [predict(image) for image in held_out.images]
        maskers = [make_masker(probability) for probability in probabilities]
        calibration[tta] = metrics.calibrate(held_out.labels, maskers)
    chosen = calibration[True]
    masks = [masker(chosen["threshold"]) for masker in maskers]
    figures.draw_validation_sheet(
        folder / "validation.png",
        held_out.names,
        held_out.images,
        held_out.labels,
        probabilities,
        masks,
        chosen["slices"],
    )
    record |= {
        "threshold": chosen["threshold"],
        "threshold_without_tta": calibration[False]["threshold"],
        "validation": chosen,
        "validation_without_tta": calibration[False],
    }
    print(
        f"\nValidation scores on the {len(held_out.names)} held-out slices "
        "(fixed: each slice's threshold chosen on the others)"
    )
    for title, scores in (("", calibration[False]), (", 8 flips averaged", chosen)):
        fixed, best = scores["fixed"], scores["best"]
        quoted = f"{fixed['v_rand']:.4f} / {fixed['v_info']:.4f}" if fixed else "needs two slices"
        best = f"{best['v_rand']:.4f} / {best['v_info']:.4f}"
        print(f"  V_rand / V_info{title}: fixed {quoted}, best {best}")
