"""MRC, DM3 and HDF5 files."""

import struct

import h5py
import numpy as np
import pytest

from membrane.errors import UserError
from membrane.io import containers, pixel_size, readers

STACK = np.random.default_rng(0).integers(0, 256, (3, 20, 30), np.uint8)


def write_mrc(path, stack, flags=None, **header):
    """Writes an MRC file; with `flags` as IMOD does, which says so in the header."""
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(path, stack) as file:
        file.voxel_size = (40, 40, 500)  # Å
    with open(path, "r+b") as file:
        if flags is not None:
            file.seek(152)
            file.write(struct.pack("<ii", 1146047817, flags))
        for place, value in header.values():
            file.seek(place)
            file.write(struct.pack("<f", value))


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32", "uint16", "float16"])
def test_an_mrc_stack_of_any_mode_is_read(tmp_path, dtype):
    stack = (STACK.astype(int) - 100).clip(0 if dtype[0] == "u" else -100, 120).astype(dtype)
    write_mrc(tmp_path / "a.mrc", stack)
    assert np.array_equal(list(readers.read_pages(tmp_path / "a.mrc")), stack)
    assert pixel_size.read_pixel_size(tmp_path / "a.mrc") == pytest.approx((4, 4))


@pytest.mark.parametrize("flags, signed", [(0, False), (1, True), (None, False)])
def test_bytes_of_an_mrc_file_are_signed_or_not_as_its_header_says(tmp_path, flags, signed):
    dmax = {} if flags is not None else {"dmax": (80, 255.0)}  # as a file of before 2014
    write_mrc(tmp_path / "a.st", STACK.view(np.int8), flags, **dmax)
    pages = np.stack(list(readers.read_pages(tmp_path / "a.st")))
    assert np.array_equal(pages, STACK.view(np.int8) if signed else STACK)


def tag(name, kind, content):
    return struct.pack(">BH", kind, len(name)) + name.encode() + content


def group(*tags):
    return struct.pack(">BBI", 1, 0, len(tags)) + b"".join(tags)


def value(code, fmt, number):
    return b"%%%%" + struct.pack(">II", 1, code) + struct.pack(f"<{fmt}", number)


def array(code, content, count):
    return b"%%%%" + struct.pack(">IIII", 3, 20, code, count) + content


def text(words):
    return array(4, words.encode("utf-16-le"), len(words))


def write_dm3(path, stack):
    """Writes what DigitalMicrograph writes, as far as a reader needs it."""
    sizes = stack.shape[::-1]
    calibration = [
        tag("", 20, group(
            tag("Origin", 21, value(6, "f", 0)), tag("Scale", 21, value(6, "f", scale)),
            tag("Units", 21, text("nm"))))
        for scale in (8.0, 8.0, 50.0)[: stack.ndim]
    ]  # fmt: skip
    data = group(
        tag("Calibrations", 20, group(tag("Dimension", 20, group(*calibration)))),
        tag("Data", 21, array(10, stack.tobytes(), stack.size)),
        tag("DataType", 21, value(5, "I", 6)),
        tag("Dimensions", 20, group(*(tag("", 21, value(5, "I", side)) for side in sizes))),
        tag("PixelDepth", 21, value(5, "I", 1)),
    )
    image = group(tag("ImageData", 20, data), tag("ImageTags", 20, group()))
    root = group(tag("ImageList", 20, group(tag("", 20, image), tag("", 20, image))))
    path.write_bytes(struct.pack(">III", 3, len(root), 1) + root + bytes(8))


def test_a_dm3_file_is_read_with_its_pixel_size(tmp_path):
    pytest.importorskip("rsciio")
    write_dm3(tmp_path / "a.dm3", STACK[0])
    (page,) = readers.read_pages(tmp_path / "a.dm3")
    assert np.array_equal(page, STACK[0])
    assert pixel_size.read_pixel_size(tmp_path / "a.dm3") == pytest.approx((8, 8))


def test_an_array_of_an_hdf5_file_is_named_where_there_are_several(tmp_path):
    path = tmp_path / "cremi.h5"
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = STACK
        file["notes"] = "text"
    assert np.array_equal(list(readers.read_pages(path)), STACK)
    with h5py.File(path, "a") as file:
        file["volumes/labels"] = STACK.astype(np.uint64)
    named = tmp_path / "cremi.h5:/volumes/raw"
    assert np.array_equal(list(readers.read_pages(named, start=1)), STACK[1:])
    for wrong in (path, tmp_path / "cremi.h5:/volumes"):
        with pytest.raises(
            UserError, match=r"name one of its arrays, as .*:/volumes/labels \(3, 20"
        ):
            readers.count_pages(wrong)


def test_a_numpy_file_is_read_without_loading_it(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    assert np.array_equal(list(readers.read_pages(tmp_path / "a.npy", start=2)), STACK[2:])
    np.save(tmp_path / "b.npy", STACK.astype(object), allow_pickle=True)
    with pytest.raises(UserError, match=r"b\.npy: "):
        readers.count_pages(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(UserError, match="colour as it seems"):
        readers.count_pages(tmp_path / "c.npy")
    for shape in ((2, 3, 20, 30), (1, 2, 3, 20, 30)):
        np.save(tmp_path / "e.npy", np.zeros(shape, np.uint8))
        with pytest.raises(UserError, match=r"expected grey \(z, y, x\)"):
            readers.count_pages(tmp_path / "e.npy")
    np.save(tmp_path / "d.npy", STACK[:, :, :3])
    assert readers.count_pages(tmp_path / "d.npy") == len(STACK)


def test_a_library_that_is_missing_is_named_with_the_file_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "a.mrc").write_bytes(bytes(2000))
    monkeypatch.setitem(__import__("sys").modules, "mrcfile", None)
    with pytest.raises(UserError, match=r"needs mrcfile; pip install -r requirements/formats.txt"):
        readers.count_pages(tmp_path / "a.mrc")


@pytest.mark.parametrize("name", ["a.mrc", "a.dm3", "a.h5"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of this kind" * 100)
    with pytest.raises(UserError, match=name):
        readers.count_pages(tmp_path / name)
    assert containers.is_container(tmp_path / name)
