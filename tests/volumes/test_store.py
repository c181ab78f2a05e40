import json

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image
from PIL import Image

from membrane.errors import UnreadableError, UserError
from membrane.volumes import pyramid, store

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 60_000, (5, 40, 30)).astype(np.uint16)
Z, REGION = slice(1, 4), (slice(7, 33), slice(2, 30))


def write_zarr(path, form):
    return zarr.create_array(str(path), data=VOLUME, chunks=(2, 16, 16), zarr_format=form)


def write_ome(path, form, axes, sides):
    group = zarr.open_group(str(path), mode="w", zarr_format=form.zarr_format)
    array = VOLUME.reshape([1] * (len(axes) - 3) + list(VOLUME.shape))
    scale = dict(zip("zyx", sides, strict=True))
    known = {"axes_units": dict.fromkeys("zyx", "micrometer"), "scale": scale}
    write_image(array, group, scale_factors=(), fmt=form, axes=axes, **known)


def write_imagej(path, order, **kind):
    tifffile.imwrite(path, VOLUME, imagej=True, byteorder=order, **kind)


def write_folder(path):
    path.mkdir()
    for z, image in enumerate(VOLUME):
        Image.fromarray(image).save(path / f"slice {z}.png")


KINDS = {
    "v2.zarr": lambda path: write_zarr(path, 2),
    "v3.zarr": lambda path: write_zarr(path, 3),
    "ome04.zarr": lambda path: write_ome(path, FormatV04(), "czyx", [0.03, 0.008, 0.008]),
    "ome05.zarr": lambda path: write_ome(path, FormatV05(), "tczyx", [0.03, 0.008, 0.008]),
    "little.tif": lambda path: write_imagej(path, "<"),
    "big.tif": lambda path: write_imagej(path, ">"),
    "compressed.tif": lambda path: write_imagej(path, ">", compression="zlib"),
    "bigtiff.tif": lambda path: tifffile.imwrite(path, VOLUME, bigtiff=True),
    "folder": write_folder,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_volume_is_what_was_stored(tmp_path, kind):
    KINDS[kind](tmp_path / kind)
    found = store.open_volume(tmp_path / kind, 10_000)
    assert found.shape == VOLUME.shape and found.itemsize == 2
    part = found.read(Z, REGION)
    assert part.dtype.newbyteorder("=") == np.uint16
    assert np.array_equal(part, VOLUME[(Z, *REGION)])
    if kind.startswith("ome"):
        assert np.allclose(found.voxel, (30, 8, 8))


def test_an_array_inside_a_group_can_be_named_and_a_lone_one_is_found(tmp_path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group.create_array("raw", data=VOLUME)
    assert store.open_volume(tmp_path / "g.zarr", 10_000).shape == VOLUME.shape
    group.create_array("other", data=VOLUME[:2])
    with pytest.raises(UserError, match="holds 2 arrays"):
        store.open_volume(tmp_path / "g.zarr", 10_000)
    assert store.open_volume(tmp_path / "g.zarr" / "other", 10_000).shape[0] == 2


@pytest.mark.parametrize("shape", [(2, 5, 40, 30), (5,), (0, 4, 4)])
def test_what_is_no_single_volume_is_refused(tmp_path, shape):
    chunks = tuple(max(1, side) for side in shape)
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, dtype="u1", chunks=chunks)
    with pytest.raises(UserError, match=r"a\.zarr: "):
        store.open_volume(tmp_path / "a.zarr", 10_000)


def test_a_single_slice_is_a_volume_of_one(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=VOLUME[0])
    found = store.open_volume(tmp_path / "a.zarr", 10_000)
    assert np.array_equal(found.read(slice(0, 1), REGION)[0], VOLUME[(0, *REGION)])


def test_axes_in_another_order_are_refused(tmp_path):
    write_ome(tmp_path / "a.zarr", FormatV04(), "zyx", [1.0, 1.0, 1.0])
    attributes = tmp_path / "a.zarr" / ".zattrs"
    content = json.loads(attributes.read_text())
    content["multiscales"][0]["axes"].reverse()
    attributes.write_text(json.dumps(content))
    with pytest.raises(UserError, match="in this order"):
        store.open_volume(tmp_path / "a.zarr", 10_000)


@pytest.mark.parametrize("damage", ["{", "{}", '{"zarr_format": 9}'])
def test_damaged_metadata_are_refused_in_one_line(tmp_path, damage):
    write_zarr(tmp_path / "a.zarr", 3)
    (tmp_path / "a.zarr" / "zarr.json").write_text(damage)
    with pytest.raises(UserError, match=r"^\S+a\.zarr: "):
        store.open_volume(tmp_path / "a.zarr", 10_000)


@pytest.mark.parametrize(("form", "chunk"), [(2, "1.0.1"), (3, "c/1/0/1")])
def test_a_truncated_chunk_is_named(tmp_path, form, chunk):
    write_zarr(tmp_path / "a.zarr", form)
    file = tmp_path / "a.zarr" / chunk
    file.write_bytes(file.read_bytes()[:40])
    found = store.open_volume(tmp_path / "a.zarr", 10_000)
    assert np.array_equal(found.read(slice(0, 2), REGION), VOLUME[(slice(0, 2), *REGION)])
    with pytest.raises(UnreadableError, match=f"chunk {chunk} cannot be read"):
        found.read(Z, REGION)


def test_slices_of_several_sizes_are_no_volume(tmp_path):
    write_folder(tmp_path / "folder")
    Image.fromarray(VOLUME[0, :20]).save(tmp_path / "folder" / "slice 3.png")
    found = store.open_volume(tmp_path / "folder", 10_000)
    with pytest.raises(UnreadableError, match=r"slice 3\.png: 20x30 px, the first slice has 40x30"):
        found.read(slice(0, 5), REGION)


def test_a_pyramid_halves_z_only_where_voxels_are_not_longer_in_z():
    flat = pyramid.plan_levels((100, 3000, 2000), (40.0, 4.0, 4.0))
    assert [shape for shape, _ in flat] == [
        (100, 3000, 2000), (100, 1500, 1000), (100, 750, 500), (100, 375, 250),
    ]  # fmt: skip
    assert pyramid.plan_levels((100, 2000, 2000), (8.0, 8.0, 8.0))[-1] == (
        (25, 500, 500),
        (4, 4, 4),
    )
    assert pyramid.plan_levels((9, 600, 600), (None, 4.0, 4.0))[1] == ((9, 300, 300), (1, 2, 2))
    assert pyramid.plan_levels((9, 10, 10), (None, None, None)) == [((9, 10, 10), (1, 1, 1))]


def test_what_is_written_is_ome_zarr_that_the_reader_understands(tmp_path):
    shape, voxel = (5, 1100, 600), (30.0, 4.0, 4.0)
    levels = pyramid.plan_levels(shape, voxel)
    pyramid.create_volume(tmp_path / "m.zarr", voxel, levels, (2, 1100, 600))
    (scales,) = zarr.open_group(str(tmp_path / "m.zarr"), mode="r").attrs["ome"]["multiscales"]
    steps = scales["datasets"][2]["coordinateTransformations"]
    assert steps[0] == {"type": "scale", "scale": [30.0, 16.0, 16.0]}
    assert steps[1] == {"type": "translation", "translation": [0.0, 6.0, 6.0]}
    assert [axis["unit"] for axis in scales["axes"]] == ["nanometer"] * 3
    part = RNG.integers(0, 256, (2, 1100, 600)).astype(np.uint8)
    pyramid.write_part(tmp_path / "m.zarr", 0, (2, 0, 0), part)
    found = store.open_volume(tmp_path / "m.zarr", 10**6)
    assert found.shape == shape and np.allclose(found.voxel, voxel)
    whole = (slice(0, 1100), slice(0, 600))
    assert np.array_equal(found.read(slice(2, 4), whole), part)
    assert not found.read(slice(0, 2), whole).any()
    assert not list((tmp_path / "m.zarr" / "0" / "c").glob("0/*"))  # nothing else was written


def write_series(path, names):
    """Writes what bioformats2raw does: an image per series, and a folder of metadata."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    (path / "OME").mkdir()
    for name in names:
        inner = group.create_group(name)
        write_image(VOLUME, inner, scale_factors=(), fmt=FormatV04(), axes="zyx")


def test_the_one_series_of_bioformats2raw_is_taken_and_several_are_named(tmp_path):
    write_series(tmp_path / "one.zarr", ["0"])
    found = store.open_volume(tmp_path / "one.zarr", 10_000)
    assert np.array_equal(found.read(Z, REGION), VOLUME[(Z, *REGION)]) and found.notes == ()
    write_series(tmp_path / "two.zarr", ["0", "1"])
    with pytest.raises(
        UserError, match=r"2 series; name one of them: \S+/two.zarr/0 \(5, 40, 30\), "
    ):
        store.open_volume(tmp_path / "two.zarr", 10_000)
    assert store.open_volume(tmp_path / "two.zarr/1", 10_000).shape == VOLUME.shape
    for count, more in ((store.NAMED, False), (store.NAMED + 1, True)):
        write_series(tmp_path / f"{count}.zarr", [str(number) for number in range(count)])
        with pytest.raises(UserError) as refusal:
            store.open_volume(tmp_path / f"{count}.zarr", 10_000)
        assert str(refusal.value).endswith("…") == more and f"{count} series" in str(refusal.value)


def test_a_channel_of_a_zarr_is_asked_for_and_taken(tmp_path):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    both = np.stack([VOLUME, VOLUME + 1])
    write_image(both, group, scale_factors=(), fmt=FormatV04(), axes="czyx")
    with pytest.raises(UserError, match=r"'c': 2.*--channel N"):
        store.open_volume(tmp_path / "a.zarr", 10_000)
    found = store.open_volume(tmp_path / "a.zarr", 10_000, channel=2)
    assert np.array_equal(found.read(Z, REGION), VOLUME[(Z, *REGION)] + 1)
    with pytest.raises(UserError, match="has 2 channels"):
        store.open_volume(tmp_path / "a.zarr", 10_000, channel=3)


@pytest.mark.parametrize(("form", "chunk"), [(2, "1.0.1"), (3, "c/1/0/1")])
def test_chunks_that_are_not_there_are_counted(tmp_path, form, chunk):
    write_zarr(tmp_path / "a.zarr", form)
    assert store.open_volume(tmp_path / "a.zarr", 10_000).notes == ()
    (tmp_path / "a.zarr" / chunk).unlink()
    (note,) = store.open_volume(tmp_path / "a.zarr", 10_000).notes
    assert note.startswith(
        "1 of the 18 chunks of a.zarr are not there (in z 2 to 3); they are read as 0"
    )


def test_scales_of_the_array_and_of_the_image_multiply(tmp_path):
    write_ome(tmp_path / "a.zarr", FormatV04(), "zyx", [0.03, 0.008, 0.004])
    attributes = tmp_path / "a.zarr" / ".zattrs"
    content = json.loads(attributes.read_text())
    whole = {"type": "scale", "scale": [1.0, 2.0, 3.0]}
    content["multiscales"][0]["coordinateTransformations"] = [whole]
    attributes.write_text(json.dumps(content))
    found = store.open_volume(tmp_path / "a.zarr", 10_000)
    assert np.allclose(found.voxel, (30, 16, 12)) and np.allclose(found.pixel_size, (16, 12))


@pytest.mark.parametrize("damage", [
    {"datasets": []}, {"datasets": [{"path": "no"}]}, {"datasets": 7},
    {"axes": 5}, {"axes": [{"type": "space"}] * 3}, {"axes": [3, 4, 5]},
])  # fmt: skip
def test_ome_metadata_that_make_no_sense_are_refused(tmp_path, damage):
    write_ome(tmp_path / "a.zarr", FormatV04(), "zyx", [1.0, 1.0, 1.0])
    attributes = tmp_path / "a.zarr" / ".zattrs"
    content = json.loads(attributes.read_text())
    content["multiscales"][0] |= damage
    attributes.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.zarr: its OME metadata make no sense"):
        store.open_volume(tmp_path / "a.zarr", 10_000)


def test_slices_of_too_many_pixels_are_refused(tmp_path):
    write_zarr(tmp_path / "a.zarr", 3)
    assert store.open_volume(tmp_path / "a.zarr", 40 * 30).shape == VOLUME.shape
    with pytest.raises(UserError, match="slices of 40x30 px, over 1,199"):
        store.open_volume(tmp_path / "a.zarr", 40 * 30 - 1)


def test_a_voxel_of_unknown_size_has_no_unit(tmp_path):
    levels = pyramid.plan_levels((2, 40, 30), (None, None, None))
    pyramid.create_volume(tmp_path / "m.zarr", (None, None, None), levels, (2, 40, 30))
    (scales,) = zarr.open_group(str(tmp_path / "m.zarr"), mode="r").attrs["ome"]["multiscales"]
    assert scales["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 1.0, 1.0]
    assert not any("unit" in axis for axis in scales["axes"])
