import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from membrane import cli, runs, synthetic

cli.start_tensorflow()


@pytest.fixture
def isbi():
    if not os.environ.get("ISBI2012_DIR"):
        pytest.skip("ISBI2012_DIR is not set")
    return Path(os.environ["ISBI2012_DIR"])


@pytest.fixture
def golden():
    if not os.environ.get("GOLDEN_DIR"):
        pytest.skip("GOLDEN_DIR is not set")
    return Path(os.environ["GOLDEN_DIR"])


def write_data_set(root, count=4, size=(96, 112), test=2):
    """Writes a small drawn data set, without the marker that says it is drawn."""
    for part, number in (("train", count), ("test", test)):
        (root / part / "imgs").mkdir(parents=True)
        (root / part / "labels").mkdir()
        for index in range(1, number + 1):
            image, interior = synthetic.make_slice(*size, seed=100 * (part == "test") + index)
            Image.fromarray(image).save(root / part / "imgs" / f"slice_{index}.png")
            label = Image.fromarray(interior * np.uint8(255))
            label.save(root / part / "labels" / f"slice_{index}.png")
    return root


def fail_at(monkeypatch, module, name, call, error):
    """Lets a module's function raise `error` at one call; returns the untouched function."""
    untouched, calls = getattr(module, name), []

    def fail(*args):
        calls.append(args)
        if len(calls) == call:
            raise error
        return untouched(*args)

    monkeypatch.setattr(module, name, fail)
    return untouched


@pytest.fixture(scope="session")
def data_set(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data_set"))


@pytest.fixture(scope="session")
def trained(data_set, tmp_path_factory):
    """Outputs with one finished, hardly trained run called "small"."""

    import train

    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUTS", outputs)
        patch.setattr(train, "TILES_PER_EPOCH", 8)
        flags = ["--filters", "4", "8", "--batch-size", "2", "--epochs", "2"]
        output = ["--output", str(outputs / "small")]
        assert train.main(["--data", str(data_set), *flags, *output]) == 0
    return outputs


@pytest.fixture
def outputs(trained, monkeypatch, tmp_path):
    """The trained outputs as the doors' own; a test's new folders go elsewhere by --output."""

    monkeypatch.setattr(runs, "OUTPUTS", trained)
    return trained
