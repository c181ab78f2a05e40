"""Predictions in strange surroundings, and of very many slices: python -m pytest -m slow."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image
from processes import command, finish, predict_command

from membrane import synthetic

pytestmark = pytest.mark.slow
ENVIRONMENTS = {
    "no HOME": ("env -u HOME", 0),
    "a HOME that cannot be written": ("env HOME=/proc/none", 0),
    "LANG=C": ("env LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0", 0),
    "no TMPDIR": ("env TMPDIR=/none", 0),
    "closed stdout": (">&-", 0),
    "closed stderr": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "head": ("| head -n 1", 141),
    "a full log": ("> /dev/full", 2),
    "another Keras": ("env KERAS_BACKEND=jax TF_USE_LEGACY_KERAS=1", 0),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_prediction_needs_no_certain_environment(tmp_path, name):
    for picture in ("a", "bé☃"):
        image = Image.fromarray(synthetic.make_slice(60, 70, 3)[0])
        (tmp_path / "slices").mkdir(exist_ok=True)
        image.save(tmp_path / "slices" / f"{picture}.png")
    setting, expected = ENVIRONMENTS[name]
    flags = ("--no-tta", "--labels")
    args = " ".join(predict_command("slices", "masks", *flags))
    line = f"{setting} {args}" if setting.startswith("env") else f"{args} {setting}"
    line = f"set -o pipefail; {line}"
    answer = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True)
    assert answer.returncode == expected, answer.stderr
    assert b"Traceback" not in answer.stderr and len(answer.stderr.splitlines()) <= 1
    if expected == 0:
        assert answer.stderr == b""
        made = {path.name for path in (tmp_path / "masks").glob("*.png")}
        assert made == {"a.png", "bé☃.png"}
    elif name == "head":  # what it had begun goes on
        args = predict_command(tmp_path / "slices", tmp_path / "masks", *flags)
        assert "Going on" in finish(args)


def test_a_training_needs_no_onednn(data_set, tmp_path):
    flags = ["--data", data_set, *SMALL, "--epochs", 1, "--output", tmp_path / "run"]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    answer = subprocess.run(
        command("train", *flags), capture_output=True, text=True, env=environment
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert (tmp_path / "run/model.keras").exists()


def test_three_thousand_slices_take_no_more_than_the_first_thousand(tmp_path):
    folder, masks = tmp_path / "slices", tmp_path / "masks"
    folder.mkdir()
    images = [synthetic.make_slice(64, 64, seed)[0] for seed in range(50)]
    for number in range(3000):
        name = folder / f"{number:05d}.png"
        Image.fromarray(np.roll(images[number % 50], number // 50, axis=1)).save(name)
    args = predict_command(folder, masks, "--no-tta")
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL)
    rows = []
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # it may just have ended
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            rows.append((len(list(masks.glob("*.png"))), memory, files))
        time.sleep(1)
    assert process.returncode == 0 and len(list(masks.glob("*.png"))) == 3000
    early = [row for row in rows if 800 <= row[0] < 1200]
    late = [row for row in rows if 2400 <= row[0] < 3000]
    assert early and late
    for column, growth in ((1, 1.05), (2, 1.0)):
        first, last = (np.median([row[column] for row in part]) for part in (early, late))
        assert last <= growth * first + (2 if column == 2 else 0), rows
