"""What users really put in: files of every kind, outputs, models, records, labels, flags."""

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from keras import layers
from PIL import Image

import evaluate
import export
import predict
import train
from membrane import synthetic
from membrane.inference import loading

ROOT = Path(predict.__file__).parent
SLICE, INTERIOR = synthetic.make_slice(120, 136, 1)
PICTURE = Image.fromarray(SLICE)
SHAPE = SLICE.shape


def encode(kind, picture=PICTURE, **options):
    """Returns a picture as the bytes of a file."""
    with io.BytesIO() as file:
        picture.save(file, kind, **options)
        return file.getvalue()


def tiff(array, **options):
    with io.BytesIO() as file:
        tifffile.imwrite(file, array, **options)
        return file.getvalue()


def png(width, height, rows, interlaced=0):
    """Returns an 8-bit grey PNG whose header says what it is told to say."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def interlaced(array):
    """Returns an interlaced PNG, which Pillow reads but does not write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
    passes += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = (row for y, x, down, right in passes for row in array[y::down, x::right] if row.size)
    return png(*array.shape[::-1], b"".join(b"\0" + row.tobytes() for row in rows), interlaced=1)


def turned():
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    return encode("JPEG", exif=exif)


def huge_tiff():
    """Returns a TIFF of a hundred bytes that says it has 10^10 pixels."""
    tags = (256, 100_000), (257, 100_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)
    tags += (278, 100_000), (279, 10)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


COLOUR = np.stack([SLICE, SLICE // 2, SLICE], axis=-1)
REAL = SLICE.astype(np.float64)
FILES = {  # by name: what is in it, and the shape of its mask or why it has none
    "pixel.png": (encode("PNG", Image.fromarray(SLICE[:1, :1])), (1, 1)),
    "row.png": (encode("PNG", Image.fromarray(np.resize(SLICE, (1, 5000)))), (1, 5000)),
    "column.tif": (tiff(np.resize(SLICE, (5000, 1))), (5000, 1)),
    "three.png": (encode("PNG", Image.fromarray(SLICE[:3, :3])), (3, 3)),
    "black.png": (encode("PNG", Image.fromarray(SLICE * 0)), SHAPE),
    "white.bmp": (encode("BMP", Image.fromarray(SLICE | 255)), SHAPE),
    "constant.tif": (tiff(np.full(SHAPE, 77, np.uint16)), SHAPE),
    "nan.tif": (tiff(np.where(SLICE > 100, np.nan, REAL)), "holds NaN or infinity"),
    "infinite.tif": (tiff(np.where(SLICE > 100, np.inf, REAL)), "holds NaN or infinity"),
    "complex.tif": (tiff(REAL * 1j), "complex numbers"),
    "rgb.png": (encode("PNG", Image.fromarray(COLOUR)), SHAPE),
    "rgba.png": (encode("PNG", Image.fromarray(COLOUR).convert("RGBA")), SHAPE),
    "alpha.png": (encode("PNG", PICTURE.convert("LA")), SHAPE),
    "palette.png": (encode("PNG", PICTURE.convert("P")), SHAPE),
    "ink.jpg": (encode("JPEG", PICTURE.convert("CMYK")), SHAPE),
    "ink.tif.tif": (encode("TIFF", PICTURE.convert("CMYK")), "save it as grey or RGB"),
    "bits.png": (encode("PNG", PICTURE.convert("1")), SHAPE),
    "bits2.tif": (encode("TIFF", PICTURE.convert("1")), SHAPE),
    "16.png": (encode("PNG", Image.fromarray(SLICE.astype(np.uint16) * 16)), SHAPE),
    "32.tif": (tiff(SLICE.astype(np.uint32) * 70_000), SHAPE),
    "negative.tif": (tiff(SLICE.astype(np.int32) - 999), SHAPE),
    "half.tif": (tiff(SLICE.astype(np.float16)), SHAPE),
    "half2.tif": (tiff((REAL * 250).astype(np.float16)), SHAPE),
    "single.tif": (tiff((REAL * 1e36).astype(np.float32)), SHAPE),
    "double.tif": (tiff(REAL * 1e300), SHAPE),
    "tiny.tif": (tiff(REAL * 1e-300), SHAPE),
    "long.tif": (tiff(SLICE.astype(np.uint64) << 50), SHAPE),
    "motorola.tif": (tiff(SLICE.astype(">u2"), byteorder=">"), SHAPE),
    "big.tif": (tiff(SLICE, bigtiff=True), SHAPE),
    "pages.tif": (tiff(np.stack([SLICE] * 3), photometric="minisblack"), (3, *SHAPE)),
    "mixed.tif": (tiff(SLICE) and encode("TIFF", append_images=[PICTURE.resize((9, 9))],
                                         save_all=True), "pages differ"),
    "interlaced.png": (interlaced(SLICE), SHAPE),
    "turned.jpg": (turned(), "marked as turned"),
    "frames.png": (encode("PNG", save_all=True, append_images=[PICTURE.rotate(90)]), "2 frames"),
    "jpeg.png": (encode("JPEG"), SHAPE),
    "png.tif": (encode("PNG"), "not a TIFF file"),
    "text.png": (b"hello", "cannot be read as an image"),
    "nothing.png": (b"", "cannot be read as an image"),
    "nothing.tif.tiff": (b"", "not a TIFF file"),
    "short.png": (encode("PNG")[:-300], "cannot be read as an image"),
    "short2.tif": (encode("TIFF")[:-300], "cannot be read as an image"),
    "short3.jpg": (encode("JPEG")[:-300], "truncated"),
    "short4.bmp": (encode("BMP")[:-300], "truncated"),
    "bomb.png": (png(10**5, 10**5, bytes(10**6)), "100000x100000 px, over"),
    "bomb2.tif": (huge_tiff(), "100000x100000 px, over"),
}  # fmt: skip
if sys.platform == "linux":  # others allow fewer names
    FILES |= dict.fromkeys((
        "膜の切片-ñandú-☃☃☃.png", " two  blanks .png", "two\nlines.png", "-rf.png", "=1+1.png",
        "a%20b#c?d&.png", "<script>alert(1)<!--.png", "'\"`$(true).png",
        os.fsdecode(b"\xff\xfe.png"), "x" * 250 + ".png",
    ), (encode("PNG"), SHAPE))  # fmt: skip


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """All files in one folder, some that are no slices among them, predicted by one command."""
    folder = tmp_path_factory.mktemp("bad") / "slices"
    folder.mkdir()
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "away.png").symlink_to(folder.parent / "elsewhere.png")
    (folder.parent / "elsewhere.png").write_bytes(encode("PNG"))
    (folder / "folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"hidden")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
    for name in ("notes.txt", "frames.gif", "Thumbs.db"):
        (folder / name).write_bytes(b"GIF89a")
    before = {path: path.lstat().st_mtime_ns for path in folder.iterdir()}
    output = folder.parent / "masks"
    flags = ["--model", "pretrained", "--no-tta", "--labels", "--output", output]
    answer = subprocess.run(
        [sys.executable, "predict.py", folder, *flags], cwd=ROOT, capture_output=True
    )
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before
    return output, answer


def said(stream):
    return os.fsdecode(stream).encode(errors="backslashreplace").decode().splitlines()


@pytest.mark.parametrize("name", FILES, ids=[ascii(name)[:24] for name in FILES])
def test_every_file_of_a_folder_is_done_right_or_refused_in_a_line(predicted, name):
    output, answer = predicted
    assert answer.returncode == 1
    expected, stem = FILES[name][1], Path(name).stem
    lines = [line for line in said(answer.stderr) if f"/{' '.join(name.split())}: " in line]
    masks = [output / f"{stem}{end}" for end in (".png", ".tif")]
    if isinstance(expected, str):
        assert len(lines) == 1 and lines[0].startswith("predict.py: error: ")
        assert expected in lines[0] and len(lines[0]) < 400
        assert not any(mask.exists() for mask in masks)
    else:
        assert not lines
        mask = tifffile.imread(masks[1]) if len(expected) == 3 else np.asarray(Image.open(masks[0]))
        assert mask.shape == expected and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        labels = tifffile.imread(output / "labels" / f"{stem}.tif")
        assert labels.size == mask.size


def test_what_is_no_slice_is_left_out_aloud_and_links_are_followed(predicted):
    output, answer = predicted
    lines = said(answer.stderr)
    assert all(line.startswith("predict.py: error: ") for line in lines)
    refused = [name for name, (_, expected) in FILES.items() if isinstance(expected, str)]
    assert len(lines) == len(refused) + 1
    assert sum("loop.png: cannot be read" in line for line in lines) == 1
    assert (output / "away.png").exists() and not (output / "folder.png").exists()
    notes = [line for line in said(answer.stdout) if "skipped" in line]
    assert len(notes) == 1
    assert all(name in notes[0] for name in ("Thumbs.db", "frames.gif", "notes.txt"))
    parts = [path for path in output.rglob("*") if path.name.startswith(".part")]
    assert parts == [] and (output / "index.html").exists()


def test_equal_slices_in_other_numbers_give_equal_masks(predicted):
    output, _ = predicted
    masks = ["alpha", "16", "32", "negative", "half", "half2", "single", "double", "tiny", "long"]
    masks += ["motorola", "big"]
    masks += ["interlaced", *(["-rf", "=1+1", "two\nlines"] if sys.platform == "linux" else [])]
    masks = [np.asarray(Image.open(output / f"{name}.png")) for name in masks]
    assert 0.1 < (masks[0] == 0).mean() < 0.5
    assert all((mask != masks[0]).mean() < 0.002 for mask in masks[1:])


def run(*flags):
    try:
        return predict.main(list(map(str, flags)))
    except SystemExit as end:
        return end.code


def check_refusal(capsys, *words):
    """One line on stderr, with these words in it."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error: " in lines[0] and "Traceback" not in lines[0], lines
    assert all(word in lines[0] for word in words), lines


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slices").mkdir()
    PICTURE.save(tmp_path / "slices/good.png")
    return tmp_path / "slices"


@pytest.mark.parametrize("output, words", [
    ("file", "a file, not a folder"), ("file/inside", "Not a directory"),
    ("slices", "input folder"), ("slices/inside", "input folder"), ("link", "input folder"),
    ("y" * 300, "File name too long"),
    ("full", "not empty, and nothing is overwritten"), ("/proc/masks", "name another --output"),
    ("/dev/null", "a file, not a folder"), ("", "expected a name, got nothing"),
])  # fmt: skip
def test_an_output_that_cannot_be_is_refused(outputs, folder, tmp_path, capsys, output, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    place = tmp_path / output if output else ""
    assert run(folder, "--model", "small", "--output", place) == 2
    check_refusal(capsys, words)
    assert (tmp_path / "file").read_text() == (tmp_path / "full/mine.txt").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["good.png"]


@pytest.mark.parametrize("flags, words", [
    *((["--threshold", value], "between 0 and 1") for value in ("0", "1", "-1", "nan", "abc", "")),
    *((["--pixel-size", value], "above 0") for value in ("0", "-4", "nan", "inf", "nm")),
    (["--pixel-size", "1e9"], "0.2 to 200 nm"), (["--pixel-size", "1e-9"], "0.2 to 200 nm"),
    (["--max-pixels", "0"], "above 0"), (["--max-pixels", "10"], "over 10"),
    (["--model", ""], "got nothing"), (["--model", "~none/run"], "no such run"),
    (["--model", "none"], "no such run or model"),
    (["--submission", "/dev/null"], "nothing is overwritten"), (["--tresh"], "unrecognized"),
])  # fmt: skip
def test_flags_that_make_no_sense_are_refused(outputs, folder, tmp_path, capsys, flags, words):
    model = [] if "--model" in flags else ["--model", ROOT / "outputs/pretrained"]
    assert run(folder, *model, "--no-tta", "--output", tmp_path / "masks", *flags) == 2
    check_refusal(capsys, words)
    assert not list(tmp_path.glob("masks/*.png"))


def test_an_unset_variable_does_not_predict_something_else(outputs, tmp_path, capsys):
    assert run("", "--model", "small", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, "got nothing")


def model_of(*stack, channels=1):
    x = image = keras.Input((None, None, channels))
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x)


def sigmoid():
    return layers.Conv2D(1, 3, padding="same", activation="sigmoid")


def with_nan():
    model = model_of(sigmoid())
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    return model


def two_inputs():
    images = [keras.Input((None, None, 1)) for _ in range(2)]
    return keras.Model(images, sigmoid()(layers.Add()(images)))


def repack(change):
    """Returns the shipped model with a change to its members, by name."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(ROOT / "outputs/pretrained/model.keras") as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in change(members).items():
                new.writestr(name, content)
        return file.getvalue()


def by_newer(members):
    version = members["metadata.json"].replace(b'"keras_version": "', b'"keras_version": "9')
    config = members["config.json"].replace(b'"Conv2D"', b'"Conv4D"')
    return members | {"metadata.json": version, "config.json": config}


def climbing(members):
    return members | {"../../climbed.txt": b"x"}


MODELS = {
    "cut short": (lambda: repack(dict)[:200_000], "cut short"),
    "text": (lambda: b"hello", "no .keras file"),
    "nothing": (lambda: b"", "no .keras file"),
    "another zip": (lambda: repack(lambda members: {"a.txt": b"x"}), "no .keras file"),
    "a bomb": (lambda: repack(lambda m: m | {"b": bytes(2 * 10**7)}), "when unpacked, over"),
    "of a newer Keras": (lambda: repack(by_newer), "saved by Keras 93."),
    "a bomb of words": (
        lambda: repack(lambda m: m | {"metadata.json": b" " * 2 * 10**7}),
        "when unpacked, over",
    ),
    "damaged": (lambda: repack(dict)[:3000] + bytes(50) + repack(dict)[3050:], "cannot be loaded"),
    "a sequence": (
        lambda: keras.Sequential([keras.Input((None, None, 1)), sigmoid()]),
        "functional",
    ),
    "of unknown shape": (lambda: keras.Sequential([sigmoid()]), "functional"),
    "code": (lambda: model_of(layers.Lambda(lambda x: x), sigmoid()), "Lambda"),
    "two inputs": (two_inputs, "expected one image"),
    "colour": (lambda: model_of(sigmoid(), channels=3), "expected one"),
    "of vectors": (
        lambda: keras.Model(*(lambda x: (x, layers.Dense(1)(x)))(keras.Input((5,)))),
        "expected one",
    ),
    "shrinking": (
        lambda: model_of(layers.Conv2D(1, 3, activation="sigmoid")),
        "not the size of its input",
    ),
    "no sigmoid": (lambda: model_of(layers.Conv2D(1, 3, padding="same")), "no sigmoid"),
    "no numbers": (with_nan, "no numbers"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:Keras:UserWarning")
def test_a_model_that_cannot_be_trusted_is_refused(
    trained, folder, tmp_path, monkeypatch, capsys, kind
):
    monkeypatch.setattr(loading, "MAX_MODEL_BYTES", 10**7)
    make, words = MODELS[kind]
    shutil.copytree(trained / "small", tmp_path / "run")
    made, path = make(), tmp_path / "run/model.keras"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made.save(path)
    assert run(folder, "--model", tmp_path / "run", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words, str(path))
    assert export.main([str(tmp_path / "run"), "--output", str(tmp_path / "run.zip")]) == 2
    check_refusal(capsys, words, str(path))
    assert {path.name for path in tmp_path.iterdir()} == {"slices", "run"}


@pytest.mark.filterwarnings("ignore:Skipping invalid path")
def test_a_model_writes_nowhere(trained, folder, tmp_path):
    shutil.copytree(ROOT / "outputs/pretrained", tmp_path / "a/b/run")
    (tmp_path / "a/b/run/model.keras").write_bytes(repack(climbing))
    flags = ["--model", tmp_path / "a/b/run", "--no-tta", "--output", tmp_path / "masks"]
    assert run(folder, *flags) == 0  # Keras leaves the climber out and says so
    assert not list(tmp_path.rglob("climbed*")) and not Path("/climbed.txt").exists()


GOOD = {"format": 1, "finished": True, "synthetic": False, "flags": {}, "threshold": 0.5}


@pytest.mark.parametrize("record, words", [
    (None, "is .* a run"), ("", "damaged"), ('{"a', "damaged"), ("[]", "damaged"),
    (b"\xff\xfe", "damaged"), (GOOD | {"format": 99}, "newer version"),
    (GOOD | {"format": "1"}, "damaged"), (GOOD | {"threshold": "abc"}, "damaged"),
    (GOOD | {"threshold": 5}, "damaged"), (GOOD | {"threshold": None}, "damaged"),
    (GOOD | {"scaling": {"mean": None}}, "damaged"), (GOOD | {"scaling": None}, "damaged"),
    (GOOD | {"scaling": {"deviation": -1}}, "damaged"), (GOOD | {"flags": []}, "damaged"),
    (GOOD | {"pixel_size": -4}, "damaged"),
    ({key: GOOD[key] for key in GOOD if key != "threshold"}, "no calibrated threshold"),
])  # fmt: skip
def test_a_record_that_cannot_be_trusted_is_refused(
    trained, folder, tmp_path, capsys, record, words
):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "small/model.keras", tmp_path / "run")
    if record is not None:
        text = json.dumps(record) if isinstance(record, dict) else record
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "run/run.json").write_bytes(content)
    assert run(folder, "--model", tmp_path / "run", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words.split(".*")[0], str(tmp_path / "run"))
    assert not (tmp_path / "masks").exists()


def edit(path, change):
    """Changes a label's pixels."""
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def each(change):
    def spoil(labels):
        for path in labels:
            edit(path, change)

    return spoil


def shift(labels):
    contents = [path.read_bytes() for path in labels]
    for path, content in zip(labels, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def soften(label):
    return np.asarray(Image.fromarray(label).resize((56, 48)).resize(label.shape[::-1]))


LABELS = {
    "inverted": (each(lambda label: 255 - label), "inverted"),
    "one inverted": (
        lambda labels: edit(labels[2], lambda label: 255 - label), "slice_3: inverted"),
    "shifted by one": (shift, "fits the slice after its own"),
    "resized": (each(lambda label: label[::2, ::2]), "must have the same size"),
    "with soft edges": (each(soften), "not a binary label"),
    "all cell": (each(lambda label: label | 255), "one class in all labels"),
    "one missing": (lambda labels: labels[3].unlink(), "every slice needs its label"),
    "one cut short": (lambda labels: labels[0].write_bytes(labels[0].read_bytes()[:99]), "slice_1"),
    "one renamed": (lambda labels: labels[0].rename(labels[0].with_name("b.png")), "of that name"),
    "one twice": (lambda labels: shutil.copy(labels[0], labels[0].with_suffix(".bmp")), "one name"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LABELS)
def test_labels_that_would_teach_nonsense_are_refused(data_set, tmp_path, capsys, fault):
    shutil.copytree(data_set, tmp_path / "set")
    spoil, words = LABELS[fault]
    spoil(sorted((tmp_path / "set/train/labels").iterdir()))
    flags = ["--data", str(tmp_path / "set"), "--output", str(tmp_path / "run"), "--epochs", "1"]
    assert train.main(flags) == 2
    check_refusal(capsys, words)
    assert not (tmp_path / "run/model.keras").exists()


@pytest.mark.parametrize("flags", [
    ["--epochs", "1.5"], ["--batch-size", "-1"], ["--filters", "16", "x"], ["--dilation", "0"],
    ["--threshold", "2"], ["--val-slices", "9-3"], ["--val-slices", "1-4"], ["--data", ""],
    ["--init", "none"], ["--resume", "none"],
])  # fmt: skip
def test_trainings_that_cannot_be_are_refused(outputs, data_set, tmp_path, capsys, flags):
    data = [] if {"--data", "--resume"} & set(flags) else ["--data", str(data_set)]
    data += [] if {"--epochs", "--resume"} & set(flags) else ["--epochs", "1"]
    output = [] if "--resume" in flags else ["--output", str(tmp_path / "run")]
    try:
        assert train.main([*data, *output, *flags]) == 2
    except SystemExit as end:
        assert end.code == 2
    check_refusal(capsys)
    assert not (tmp_path / "run/model.keras").exists()


@pytest.mark.parametrize("spoil, words", [
    (lambda masks, labels: shutil.rmtree(masks), "no such file or folder"),
    (lambda masks, labels: [path.unlink() for path in masks.iterdir()], "no image"),
    (lambda masks, labels: (masks / "s1.png").write_bytes(b""), "s1.png: cannot be read"),
    (lambda masks, labels: edit(labels / "s1.png", soften), "not a binary label"),
    (lambda masks, labels: edit(masks / "s1.png", lambda mask: mask[:9]), "size"),
    (lambda masks, labels: (masks / "s1.png").rename(masks / "t.png"), "t"),
])  # fmt: skip
def test_scores_of_what_does_not_fit_are_refused(tmp_path, capsys, spoil, words):
    for part in ("masks", "labels"):
        (tmp_path / part).mkdir()
        for name in ("s1", "s2"):
            Image.fromarray(INTERIOR * np.uint8(255)).save(tmp_path / part / f"{name}.png")
    spoil(tmp_path / "masks", tmp_path / "labels")
    assert evaluate.main([str(tmp_path / "masks"), str(tmp_path / "labels")]) == 2
    check_refusal(capsys, words)


def test_a_name_never_becomes_part_of_the_page(predicted):
    output, _ = predicted
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("<script>") == page.count("</script>") == 1  # the page's own


def test_a_disk_that_cannot_be_read_is_said_and_the_rest_done(
    outputs, folder, tmp_path, monkeypatch, capsys
):
    PICTURE.save(folder / "torn.png")
    whole = Path.read_bytes

    def fail(path):
        if path.name == "torn.png":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert run(folder, "--model", "small", "--output", tmp_path / "masks") == 1
    check_refusal(capsys, "torn.png", "Input/output error")
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["good.png"]
