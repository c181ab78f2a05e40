import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
import train
from membrane import cli, runs, synthetic

PRETRAINED = runs.OUTPUTS / runs.PRETRAINED
SMALL = ["--filters", "4", "8", "--batch-size", "2"]  # of a network that trains in seconds
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync")
QUIET = ("disable-background-networking", "disable-component-update", "window-size=1000,800")


def pytest_configure(config):
    """Starts TensorFlow as train.py does, but not where tests are only handed out to others."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        cli.start_tensorflow(training=True)


@pytest.fixture(scope="session", autouse=True)
def load_once():
    """Lets the commands load and compile each network once in all tests, which takes seconds."""
    from membrane.inference import loading, precision, predictor

    load, convert, build = loading.load_network, precision.with_dtype, predictor.Predictor.__init__
    loaded, converted, built = {}, {}, {}

    def load_network(path):
        state = path.is_file() and (path.resolve(), path.stat().st_mtime_ns, path.stat().st_size)
        if state not in loaded:
            network = load(path)
            loaded[state] = network, network.get_weights()
        network, weights = loaded[state]
        network.set_weights(weights)  # which a training may have gone on from
        return network

    def with_dtype(model, dtype):
        if not any(model is network for network, _ in loaded.values()):
            return convert(model, dtype)
        key = id(model), dtype
        if key not in converted:
            converted[key] = convert(model, dtype)
        converted[key].set_weights(model.get_weights())
        return converted[key]

    def __init__(self, network, *args, **kwargs):
        if not any(network is known for known in converted.values()):
            return build(self, network, *args, **kwargs)
        key = id(network), args, *kwargs.items(), predictor.TILE
        if key not in built:
            build(self, network, *args, **kwargs)
            built[key] = vars(self).copy()
        vars(self).update(built[key])
        self.pool = predictor.ThreadPoolExecutor(self.pool._max_workers)
        self.refresh()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_network", load_network)
        patch.setattr(precision, "with_dtype", with_dtype)
        patch.setattr(predictor.Predictor, "__init__", __init__)
        yield


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


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS + QUIET:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def run(script, *flags):
    """Runs a command in this process and returns its exit status."""
    try:
        return script.main([*map(str, flags)])
    except SystemExit as end:  # by argparse
        return end.code


def run_predict(*flags):
    """Runs predict.py in this process, without averaging flips, and returns its exit status."""
    return run(predict, "--no-tta", *flags)


def check_refusal(capsys, *words):
    """One line on stderr, with these words in it."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error: " in lines[0] and "Traceback" not in lines[0], lines
    assert all(word in lines[0] for word in words), lines


def shorten(patch):
    """Makes a training one of few and small tiles."""
    from membrane.training import augmentation

    patch.setattr(train, "TILES_PER_EPOCH", 8)
    patch.setattr(augmentation, "TILE", 64)


def read_page_data(folder):
    """Returns what the page of a prediction knows: its slices, among others."""
    text = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def read_history(folder):
    """Returns the rows of a run's history.csv."""
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_weights(folder):
    """Returns the weights of a run's network."""
    import keras

    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def write_data_set(root, count=4, size=(96, 112), test=2):
    """Writes a small synthetic data set, without the marker that says so."""
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

    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "OUTPUTS", outputs)
        shorten(patch)
        flags = ["--epochs", "2", "--output", outputs / "small"]
        assert run(train, "--data", data_set, *SMALL, *flags) == 0
    return outputs


@pytest.fixture
def outputs(trained, monkeypatch, tmp_path):
    """The trained outputs as the commands' own; new folders of a test go elsewhere by --output."""

    monkeypatch.setattr(runs, "OUTPUTS", trained)
    monkeypatch.setattr(runs, "CHANCE", -1.0)  # hardly trained as it is
    return trained


@pytest.fixture
def small_epochs(monkeypatch, tmp_path):
    """Epochs of 8 tiles, and outputs without a run."""
    shorten(monkeypatch)
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")


@pytest.fixture
def folder(tmp_path):
    """A folder of three files, of different kinds and sizes."""
    folder = tmp_path / "my slices"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50)), ("b 2.tif", (33, 20)), ("c.jpg", (64, 64))):
        image = rng.integers(0, 256, size, np.uint8)
        Image.fromarray(image).save(folder / name)
    return folder


@pytest.fixture
def one_slice(tmp_path):
    """A folder of one good slice."""
    (tmp_path / "slices").mkdir()
    image, _ = synthetic.make_slice(120, 136, 1)
    Image.fromarray(image).save(tmp_path / "slices/good.png")
    return tmp_path / "slices"
