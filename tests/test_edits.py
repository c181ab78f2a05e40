"""What a student changes, in one file, in a copy of the repository: python -m pytest -m slow."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict

ROOT = Path(predict.__file__).parent
pytestmark = pytest.mark.slow
BOTTLENECK = 'x = convolve_twice(x, filters[-1], "bridge", dilations=(dilation, dilation**2))\n'
CONVOLUTION = '            name=f"{name}_conv{number}",\n        )(x)\n'
UPSAMPLING = "layers.UpSampling2D(2, "
TRANSPOSED = 'layers.Conv2DTranspose(filters[stage - 1], 2, strides=2, padding="same", '
EDITS = {  # the file, what stands there, what the student writes
    "dropout in the bottleneck": (
        "unet.py", BOTTLENECK, BOTTLENECK + "    x = layers.Dropout(0.2)(x)\n",
    ),
    "batch normalization after every convolution": (
        "unet.py", CONVOLUTION, CONVOLUTION + "        x = layers.BatchNormalization()(x)\n",
    ),
    "transposed convolutions": ("unet.py", UPSAMPLING, TRANSPOSED),
    "kernels of five pixels": ("unet.py", "KERNEL_SIZE = 3", "KERNEL_SIZE = 5"),
    "Dice loss": ("train.py", 'loss="binary_crossentropy"', "loss=keras.losses.Dice()"),
    "no elastic deformation": (
        "membrane/training/augmentation.py", "ELASTIC_FRACTION = 0.375", "ELASTIC_FRACTION = 0.0",
    ),
}  # fmt: skip
USED = """
import sys
import numpy as np
import predict
import train
if train.main([*sys.argv[1:], "--output", "run"]):
    sys.exit(1)
if predict.main(["--model", "run", "--no-tta", "--output", "masks"]):
    sys.exit(1)
from membrane.inference.loading import load_network
from membrane.inference.predictor import Predictor
from pathlib import Path
network = load_network(Path("run/model.keras"))
image = np.random.default_rng(0).random((200, 177)).astype(np.float32)
whole = Predictor(network, tile=(10_000, 10_000))(image)
tiled = Predictor(network, tile=(64, 64))(image)
print(network.count_params(), np.ptp(whole) > 0, np.abs(whole - tiled).max() < 3e-6)
"""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_in_one_place_trains_predicts_and_is_tiled_exactly(name, data_set, tmp_path):
    file, before, after = EDITS[name]
    for part in ("train.py", "predict.py", "data.py", "unet.py"):
        shutil.copy(ROOT / part, tmp_path)
    shutil.copytree(ROOT / "membrane", tmp_path / "membrane")
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (tmp_path / file).write_text(text.replace(before, after), encoding="utf-8")
    flags = ("--data", data_set, "--epochs", 2, "--filters", 4, 8, "--batch-size", 16)
    command = [sys.executable, "-c", USED, *map(str, flags)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stderr == "", answer.stderr
    assert "Epoch 2, validation" in answer.stdout
    *_, parameters, varies, tiled_as_whole = answer.stdout.split()
    masks = [np.asarray(Image.open(path)) for path in (tmp_path / "masks").glob("*.png")]
    assert len(masks) == 2 and all(set(np.unique(mask)) <= {0, 255} for mask in masks)
    assert varies == tiled_as_whole == "True"
    assert (int(parameters) != 1657) == (file == "unet.py" and "Dropout" not in after)
