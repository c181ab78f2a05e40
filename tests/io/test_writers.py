import os

import numpy as np
import pytest
import tifffile

from membrane.io import pixel_size, readers, writers

GREY = np.arange(600, dtype=np.uint8).reshape(20, 30)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "mask.png"
    writers.write_pages(path, [GREY])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), writers.atomic_write(path) as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["mask.png"]


def test_a_written_stack_is_one_stack_of_the_same_pages(tmp_path):
    pages = [GREY, GREY[::-1]]
    writers.write_pages(tmp_path / "a.tif", pages)
    assert np.array_equal(list(readers.read_pages(tmp_path / "a.tif")), pages)
    assert tifffile.imread(tmp_path / "a.tif").shape == (2, 20, 30)
    with writers.open_pages(tmp_path / "b.tif", 0, (8.0, 4.0)) as write:
        write(GREY)
    assert pixel_size.read_pixel_size(tmp_path / "b.tif") == pytest.approx((8, 4))


def test_many_labels_are_written_with_32_bits_and_the_pixel_size(tmp_path):
    labels = np.arange(40_000, 110_000).reshape(1, 700, 100)
    for largest, dtype in ((65_535, np.uint16), (65_536, np.uint32)):
        path = tmp_path / f"{largest}.tif"
        with writers.open_labels(path, labels.shape, largest, (8.0, 4.0)) as write:
            write(labels[0])
        assert np.array_equal(tifffile.imread(path), labels[0].astype(dtype))
        assert pixel_size.read_pixel_size(path) == pytest.approx((8, 4))


@pytest.mark.skipif(os.name == "nt", reason="permissions")
@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644)])
def test_nobody_may_do_more_with_a_file_than_the_user_lets_them(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        writers.write_json(tmp_path / "run.json", {})
        writers.write_pages(tmp_path / "mask.png", [np.zeros((2, 2), np.uint8)])
        with writers.open_labels(tmp_path / "labels.tif", (1, 2, 2), 5, None) as write:
            write(np.ones((2, 2), int))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}
