import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import engines
import speed

from membrane.errors import UserError


def living(precision, folder):
    return {(256, 256): (1.0, lambda: None), (512, 512): (1.0, lambda: sum(range(10**5)))}


def dying_at_once(precision, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at_work(precision, folder):
    return {(256, 256): (1.0, lambda: os.kill(os.getpid(), signal.SIGSEGV))}


def missing(precision, folder):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def differing(precision, folder):
    raise UserError("P(interior) differs by 0.3")


def test_an_engine_that_dies_or_is_missing_leaves_a_row_and_the_others_are_measured(tmp_path):
    peers = {
        "dying": dying_at_once,
        "PyTorch channels_last": dying_at_work,
        "OpenVINO": missing,
        "other": differing,
    }
    jobs = [speed.Job("network", name, "bfloat16", prepare) for name, prepare in peers.items()]
    jobs.append(speed.Job("network", "ours", "bfloat16", living))
    rows = speed.take_turns(jobs, tmp_path, 1)
    assert [row.get("failure") for row in rows] == [
        "died with status -9",
        "died with status -11",
        "torch not installed",
        "P(interior) differs by 0.3",
        None,
    ]
    assert rows[-1]["best"] == "256×256" and rows[-1]["peak_mib"] > 1

    rows += [{"kind": "start", "engine": e, "precision": "", "seconds": 2.0} for e in "ab"]
    table = speed.draw("a CPU", rows)
    assert "CPU: a CPU." in table
    assert "| network | OpenVINO | bfloat16 | torch not installed |" in table
    ratios = speed.draw_ratios(rows)
    assert "network_vs_openvino: none" in ratios and "network_vs_pytorch: none" in ratios
    assert "overhead_of_augmentation: none" in ratios
    assert ratios[-1] == "first_mask_vs_import_tensorflow: 1.00 (+ 0.0 s)"


def test_ratios_are_of_engines_that_are_measured():
    names = {speed.name_row(job._asdict()) for job in speed.JOBS}
    assert {name for pair in speed.RATIOS.values() for name in pair} <= names


def test_tiles_cover_the_same_pixels_in_every_shape(tmp_path):
    slices = np.arange(4 * 512 * 512, dtype=np.float32).reshape(4, 512, 512)
    np.save(tmp_path / "slices.npy", slices)
    np.save(tmp_path / "reference.npy", slices[0])
    rounds = engines.network(lambda *_: lambda tiles: tiles)("float32", tmp_path)
    for (height, width), (mpixel, run) in rounds.items():
        tiles = run()
        assert all(tile.shape == (height, width) for tile in tiles)
        assert mpixel * 1e6 == sum(tile.size for tile in tiles)
        assert len(np.unique(tiles)) == mpixel * 1e6  # no pixel twice


def test_a_network_of_another_output_is_refused(tmp_path):
    slices = np.zeros((2, 512, 512), np.float32)
    np.save(tmp_path / "slices.npy", slices)
    np.save(tmp_path / "reference.npy", slices[0] + 0.2)
    with pytest.raises(UserError, match=r"P\(interior\) differs by 0.2"):
        engines.network(lambda *_: lambda tiles: tiles)("bfloat16", tmp_path)


@pytest.mark.slow
def test_our_engines_run_what_predict_and_train_run(tmp_path, monkeypatch):
    from membrane.inference import outputs  # not above, where every engine would import it
    from membrane.io.writers import write_pages

    monkeypatch.setattr(outputs, "SHEET_SLICES", outputs.SHEET_SLICES)  # put back afterwards
    monkeypatch.setattr(engines, "STEPS", 1)
    slices = np.random.default_rng(0).integers(0, 256, (2, 512, 512), np.uint8)
    for number, image in enumerate(slices):
        write_pages(tmp_path / "slices" / f"{number}.png", [image])
    np.save(tmp_path / "slices.npy", (slices / 255).astype(np.float32))
    written = []
    monkeypatch.setattr(
        outputs, "finish_metadata", lambda folder, *_: written.extend(folder.glob("*.png"))
    )
    for rounds, work in (
        (engines.pipeline("", tmp_path, ["--no-tta", "--plain", "--threshold", "0.9"]), 0.524288),
        (engines.training("float32", tmp_path), 8),
        (engines.training("float32", tmp_path, constant=True), 8),
        (engines.tiles("", tmp_path), 32 / len(os.sched_getaffinity(0))),
    ):
        [(amount, run)] = rounds.values()
        assert amount == work
        run()
    assert [path.name for path in sorted(written)] == ["0.png", "1.png"]
