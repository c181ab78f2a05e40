import numpy as np
import pytest
import tifffile

from membrane.io import pixel_size, readers


@pytest.mark.parametrize("size, options", [
    (4, {"imagej": True, "resolution": (250, 250), "metadata": {"unit": "um"}}),
    (4, {"imagej": True, "resolution": (250, 250), "metadata": {"unit": "\\u00B5m"}}),
    (8, {"imagej": True, "resolution": (1 / 8, 1 / 8), "metadata": {"unit": "nm"}}),
    (5, {"ome": True, "metadata": {"PhysicalSizeX": 5, "PhysicalSizeXUnit": "nm"}}),
    (6, {"resolution": (1e7 / 6, 1e7 / 6), "resolutionunit": "CENTIMETER"}),
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
    assert pixel_size.read_pixel_size(tmp_path / "a.tif") == pytest.approx(8, rel=1e-3)


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
