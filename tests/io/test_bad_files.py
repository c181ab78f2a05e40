"""What users really put in: files of every kind, in one folder, predicted by one command."""

import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import check_refusal, run_predict
from PIL import Image
from processes import command

from membrane import synthetic

SLICE, _ = synthetic.make_slice(120, 136, 1)
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
    "nan.tif": (tiff(np.where(SLICE > 100, np.nan, REAL)), SHAPE),
    "infinite.tif": (tiff(np.where(SLICE > 100, np.inf, REAL)), SHAPE),
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
    answer = subprocess.run(command("predict", folder, *flags), capture_output=True)
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before
    return output, answer


def lines_of(stream):
    return os.fsdecode(stream).encode(errors="backslashreplace").decode().splitlines()


@pytest.mark.parametrize("name", FILES, ids=[ascii(name)[:24] for name in FILES])
def test_every_file_of_a_folder_is_done_right_or_refused_in_a_line(predicted, name):
    output, answer = predicted
    assert answer.returncode == 1
    expected, stem = FILES[name][1], Path(name).stem
    lines = [line for line in lines_of(answer.stderr) if f"/{' '.join(name.split())}: " in line]
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


def test_other_files_are_skipped_with_a_notice_and_links_are_followed(predicted):
    output, answer = predicted
    lines = lines_of(answer.stderr)
    assert all(line.startswith("predict.py: error: ") for line in lines)
    refused = [name for name, (_, expected) in FILES.items() if isinstance(expected, str)]
    assert len(lines) == len(refused) + 1
    assert sum("loop.png: cannot be read" in line for line in lines) == 1
    assert (output / "away.png").exists() and not (output / "folder.png").exists()
    notes = [line for line in lines_of(answer.stdout) if "skipped" in line]
    assert len(notes) == 2 and notes[1] == "Note: skipped, folders in a folder: folder.png"
    assert all(name in notes[0] for name in ("Thumbs.db", "frames.gif", "notes.txt"))
    parts = [path for path in output.rglob("*") if path.name.startswith(".part")]
    assert parts == [] and (output / "index.html").exists()


def test_equal_slices_of_other_types_and_exposures_give_equal_masks(predicted):
    output, _ = predicted
    masks = ["alpha", "16", "32", "negative", "half", "half2", "single", "double", "tiny", "long"]
    masks += ["motorola", "big"]
    masks += ["interlaced", *(["-rf", "=1+1", "two\nlines"] if sys.platform == "linux" else [])]
    masks = [np.asarray(Image.open(output / f"{name}.png")) for name in masks]
    assert 0.1 < (masks[0] == 0).mean() < 0.5
    assert all((mask != masks[0]).mean() < 0.002 for mask in masks[1:])


def test_a_name_never_becomes_part_of_the_page(predicted):
    output, _ = predicted
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 3  # the page's own, and its data


def test_a_read_error_is_reported_and_the_rest_done(
    outputs, one_slice, tmp_path, monkeypatch, capsys
):
    PICTURE.save(one_slice / "torn.png")
    whole = Path.read_bytes

    def fail(path):
        if path.name == "torn.png":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert run_predict(one_slice, "--model", "small", "--output", tmp_path / "masks") == 1
    check_refusal(capsys, "torn.png", "Input/output error")
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["good.png"]
