import struct

import h5py
import numpy as np
import pytest
import tifffile

from membrane.io import pixel_size, readers

FEI = b"[User]\r\nDate=1\r\n[Scan]\r\nPixelWidth=8e-009\r\nPixelHeight=1.6e-008\r\n"
ZEISS = "AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 9.5 nm\r\n".encode("latin1")


@pytest.mark.parametrize("size, options", [
    ((4, 4), {"imagej": True, "resolution": (250, 250), "metadata": {"unit": "um"}}),
    ((4, 4), {"imagej": True, "resolution": (250, 250), "metadata": {"unit": "\\u00B5m"}}),
    ((16, 8), {"imagej": True, "resolution": (1 / 8, 1 / 16), "metadata": {"unit": "nanometers"}}),
    ((8, 8), {"imagej": True, "resolution": (1 / 80, 1 / 80), "metadata": {"unit": "\\u00C5"}}),
    ((5, 5), {"ome": True, "metadata": {"PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"}}),
    ((30, 5), {"ome": True, "metadata": {"PhysicalSizeX": 50, "PhysicalSizeXUnit": "Å",
      "PhysicalSizeY": 0.03, "PhysicalSizeYUnit": "µm"}}),
    ((6, 3), {"resolution": (1e7 / 3, 1e7 / 6), "resolutionunit": "CENTIMETER"}),
    ((16, 8), {"extratags": [(34682, "s", len(FEI), FEI, True)]}),
    ((9.5, 9.5), {"extratags": [(34118, "s", len(ZEISS), ZEISS, True)]}),
    ((7, 5), {"extratags": [(65003, "s", 0, b"\xb5m", True), (65004, "s", 0, "nm", True),
      (65009, "d", 1, 0.005, True), (65010, "d", 1, 7.0, True)]}),
    (None, {"resolution": (72, 72), "resolutionunit": "INCH"}),
    (None, {"resolution": (0, 1), "resolutionunit": "CENTIMETER"}),
    (None, {}),
])  # fmt: skip
def test_a_tiffs_pixel_size_is_read_where_it_can_be_true(tmp_path, size, options):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9), np.uint8), **options)
    found = pixel_size.read_pixel_size(tmp_path / "a.tif")
    assert found is None if size is None else found == pytest.approx(size, rel=1e-3)


def test_an_empty_unit_of_imagej_leaves_the_word_to_the_plain_tags(tmp_path):
    stated = {"resolution": (1e7 / 8, 1e7 / 8), "resolutionunit": "CENTIMETER"}
    empty = {"imagej": True, "metadata": {"unit": ""}}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 8), np.uint8), **empty, **stated)
    assert pixel_size.read_pixel_size(tmp_path / "a.tif") == pytest.approx((8, 8), rel=1e-3)


def test_the_pixel_size_of_an_olympus_tiff_is_read(tmp_path):
    path = tmp_path / "sis.tif"
    tifffile.imwrite(path, np.zeros((9, 8), np.uint8), extratags=[(33560, "I", 1, 4096, True)])
    with open(path, "r+b") as file:
        start = file.seek(4096)
        file.write(struct.pack("<4s6xhhhhh6x32sH", b"SIS0", 0, 0, 1, 1, 99, b"", 1))
        file.write(struct.pack("<hhI", 1, 1, start + 68))
        file.write(struct.pack("<10xhdd8xd2x34s32s", -9, 6.0, 12.0, 1.0, b"", b""))
    assert pixel_size.read_pixel_size(path) == pytest.approx((12, 6))


def test_the_pixel_size_of_mrc_and_hdf5_is_read(tmp_path):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "a.mrc", np.zeros((2, 9, 8), np.int8)) as file:
        file.voxel_size = (60, 80, 500)  # Å, of x, y and z
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.zeros((2, 9, 8), np.uint8)
        file["raw"].attrs["resolution"] = (50.0, 8.0, 6.0)  # nm, as CREMI has it
    for name in ("a.mrc", "a.h5"):
        assert pixel_size.read_pixel_size(tmp_path / name) == pytest.approx((8, 6))


@pytest.mark.parametrize("options", [
    {"description": '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/'
     '2016-06"><BinaryOnly MetadataFile="a.ome"/></OME>', "metadata": None},
    {"imagej": True, "metadata": {"unit": 5}},
])  # fmt: skip
def test_metadata_that_make_no_sense_cost_no_slice(tmp_path, options):
    path = tmp_path / "strange.ome.tif"
    tifffile.imwrite(path, np.zeros((9, 8), np.uint8), **options)
    assert pixel_size.read_pixel_size(path) is None
    assert [page.shape for page in readers.read_pages(path)] == [(9, 8)]
