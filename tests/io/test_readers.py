import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from membrane.errors import UnreadableError, UserError
from membrane.io import labels, pixel_size, readers
from membrane.io.normalization import to_grey

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), np.uint8)


def read_one(path):
    (page,) = readers.read_pages(path)
    return page


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_png_round_trip_keeps_every_value(tmp_path, dtype):
    image = (
        GREY > 127 if dtype == "bool" else GREY.astype(dtype) * (257 if dtype == "uint16" else 1)
    )
    Image.fromarray(image).save(tmp_path / "a.png")
    read = read_one(tmp_path / "a.png")
    assert np.array_equal(read > 0 if dtype == "bool" else read, image)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", "<f4", ">f4", "<f8", "<i2"])
def test_tiff_round_trip_keeps_every_value(tmp_path, dtype, compression):
    image = GREY.astype(dtype)
    order = dtype[0] if dtype[0] in "<>" else "<"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, byteorder=order, compression=compression)
    assert np.array_equal(read_one(path), image)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".JPEG"])
def test_other_formats_are_read(tmp_path, suffix):
    image = np.full((20, 30), 77, np.uint8)
    Image.fromarray(image).save(tmp_path / f"a{suffix}")
    assert np.abs(read_one(tmp_path / f"a{suffix}").astype(int) - image).max() <= 2


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg"), ("RGB", "tif"),
])  # fmt: skip
def test_grey_saved_as_colour_is_read_as_grey(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).convert("RGB").convert(mode).save(path, quality=100)
    grey = to_grey(read_one(path)).astype(float)
    assert np.abs(grey - GREY).max() <= (3 if suffix == "jpg" else 0)


def test_a_palette_is_looked_up(tmp_path):
    ramp = bytes(value for index in range(256) for value in [255 - index] * 3)
    for path in (tmp_path / "a.png", tmp_path / "a.tif"):
        image = Image.fromarray(GREY).convert("P")
        image.putpalette(ramp)
        image.save(path)
        grey = to_grey(read_one(path))
        assert np.array_equal(grey >> (8 if grey.dtype == np.uint16 else 0), 255 - GREY)


def test_colour_tiff_is_read_with_samples_first_or_last(tmp_path):
    colour = np.stack([GREY, GREY // 2, GREY // 3], -1)
    tifffile.imwrite(tmp_path / "last.tif", colour, photometric="rgb")
    planes = np.moveaxis(colour, -1, 0)
    tifffile.imwrite(tmp_path / "first.tif", planes, photometric="rgb", planarconfig="separate")
    for name in ("last.tif", "first.tif"):
        assert np.array_equal(read_one(tmp_path / name), colour)


def test_white_is_zero_tiff_is_inverted(tmp_path):
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY.astype(dtype), photometric="miniswhite")
        assert np.array_equal(read_one(path), np.iinfo(dtype).max - GREY.astype(dtype))


def test_deep_colour_png_keeps_its_low_bytes(tmp_path):
    deep = np.stack([GREY.astype(np.uint16) * 9 + 1000] * 3, -1)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    assert np.array_equal(to_grey(read_one(tmp_path / "a.png")), deep[..., 0])


def test_signed_white_is_zero_tiff_keeps_its_order(tmp_path):
    image = np.array([[-30000, 0, 30000]], np.int16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="miniswhite")
    assert (np.diff(read_one(tmp_path / "a.tif").astype(int)) < 0).all()


def test_colours_that_are_not_understood_are_refused(tmp_path):
    inks = np.stack([GREY] * 4, -1)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated")
    with pytest.raises(UnreadableError, match="SEPARATED"):
        read_one(tmp_path / "a.tif")


def test_each_file_of_an_ome_set_gives_its_own_pages(tmp_path):
    stack = RNG.integers(0, 255, (3, 20, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX"})
    assert np.array_equal(list(readers.read_pages(tmp_path / "a.ome.tif")), stack)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_slice_over_the_limit_is_refused_before_it_is_decoded(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a{suffix}")
    with pytest.raises(UnreadableError, match="px, over 599"):
        list(readers.read_pages(tmp_path / f"a{suffix}", 599))


def test_a_large_picture_is_no_bomb(tmp_path):
    Image.new("1", (14000, 14000)).save(tmp_path / "large.png")
    assert read_one(tmp_path / "large.png").shape == (14000, 14000)


@pytest.mark.parametrize("imagej", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_stack_gives_its_pages_in_order(tmp_path, imagej, byteorder):
    stack = RNG.integers(0, 9999, (5, 20, 30)).astype(np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack, imagej=imagej, byteorder=byteorder)
    assert readers.count_pages(path) == 5
    assert np.array_equal(list(readers.read_pages(path)), stack)


def test_a_folder_is_listed_in_natural_order_without_hidden_files(tmp_path):
    for name in ("10.png", "2.png", "1.PNG", "._1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in readers.list_images(tmp_path)] == ["1.PNG", "2.png", "10.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"put slices there \(ali, bmp, "):
        readers.list_images(tmp_path / "none")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("fault", ["empty", "text", "truncated"])
def test_a_damaged_file_is_named(tmp_path, suffix, fault):
    path = tmp_path / f"bad{suffix}"
    image = RNG.integers(0, 256, (200, 200), np.uint8)
    if suffix == ".tif":
        tifffile.imwrite(path, image)
    else:
        Image.fromarray(image).save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"no image", "truncated": whole[: len(whole) // 2]}[fault]
    )
    with pytest.raises(UnreadableError, match="bad"):
        list(readers.read_pages(path))


STACK = RNG.integers(0, 256, (6, 20, 30), np.uint8)


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "CZYX", "TZCYX"])
def test_a_channel_is_asked_for_and_taken(tmp_path, kind, axes):
    axes = "ZCYX" if kind == "imagej" and axes == "CZYX" else axes  # ImageJ has one order
    sides = {"C": 2, "Z": 3, "T": 1}
    shape = tuple(sides[axis] for axis in axes[:-2])
    count = int(np.prod(shape))
    stack = STACK[:count].reshape(*shape, 20, 30)
    options = {"ome": kind == "ome", "imagej": kind == "imagej", "metadata": {"axes": axes}}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    with pytest.raises(UnreadableError, match=r"axes .*'C': 2.*--channel N"):
        readers.count_pages(path)
    with pytest.raises(UnreadableError, match="it has 2 channels"):
        readers.count_pages(path, channel=3)
    second = stack.take(1, axes.index("C")).reshape(-1, 20, 30)
    assert readers.count_pages(path, channel=2) == count // 2
    assert np.array_equal(list(readers.read_pages(path, channel=2)), second)
    assert readers.count_pages(path, channel=0) == count


def test_a_channel_can_be_a_colour(tmp_path):
    colours = np.moveaxis(STACK[:3], 0, -1)
    Image.fromarray(colours).save(tmp_path / "a.png")
    (page,) = readers.read_pages(tmp_path / "a.png", channel=2)
    assert np.array_equal(page, STACK[1])
    with pytest.raises(UnreadableError, match="it has three colours"):
        list(readers.read_pages(tmp_path / "a.png", channel=4))


def test_masks_and_originals_have_one_name(tmp_path):
    for name in ("a.ome.tif", "b_mask.tif"):
        tifffile.imwrite(tmp_path / name, STACK[: 2 if name[0] == "b" else 1])
    names = [name for name, _ in readers.read_named(tmp_path)]
    assert names == ["a", "b_mask[1]", "b_mask[2]"]
    assert labels.pair_names(["b[1]", "b[2]"], names) == {"b[1]": names[1], "b[2]": names[2]}


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_several_times_are_refused(tmp_path, kind):
    path = tmp_path / "a.tif"
    options = {"ome": kind == "ome", "imagej": kind == "imagej", "metadata": {"axes": "TYX"}}
    tifffile.imwrite(path, STACK[:3], photometric="minisblack", **options)
    with pytest.raises(UnreadableError, match=r"'T': 3.*save one time"):
        readers.count_pages(path)


def test_slices_that_tifffile_saved_as_colours_are_refused(tmp_path):
    for count in (3, 4):
        path = tmp_path / f"{count}.tif"
        tifffile.imwrite(path, STACK[:count], photometric="rgb", planarconfig="separate")
        with pytest.raises(UnreadableError, match=rf"{count} planes, marked as colours"):
            read_one(path)


def test_thumbnails_are_no_slices(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for page, kind in ((STACK[0], 0), (STACK[1], 1), (STACK[3, :9], 1)):
            tiff.write(page, subfiletype=kind, metadata=None)
        tiff.write(STACK[4], metadata=None)
    assert readers.count_pages(path) == 2
    assert np.array_equal(list(readers.read_pages(path)), STACK[[0, 4]])


def test_a_tiff_of_jpeg_colours_is_read(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    path = tmp_path / "a.tif"
    colour = np.asarray(Image.fromarray(smooth).convert("RGB").convert("YCbCr"))
    tifffile.imwrite(path, colour, photometric="ycbcr", compression="jpeg", tile=(64, 64))
    assert np.abs(to_grey(read_one(path)).astype(float) - smooth).max() <= 4


def test_a_bool_tiff_of_tifffile_keeps_its_truth(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY > 99)
    assert np.array_equal(read_one(tmp_path / "a.tif"), GREY > 99)


def test_a_turned_tiff_and_one_without_pages_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, "H", 1, 6, True)], metadata=None)
    with pytest.raises(UnreadableError, match="marked as turned"):
        read_one(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"II*\x00\x00\x00\x00\x00")
    with pytest.raises(UnreadableError, match=r"b\.tif: holds no slice"):
        read_one(tmp_path / "b.tif")


def test_names_are_the_same_however_their_accents_are_stored(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "e\u0301.png")
    assert [name for name, _ in readers.read_named(tmp_path)] == ["\u00e9"]


@pytest.mark.parametrize("writer", ["pillow", "tifffile", "imagej"])
def test_a_stack_that_was_cut_short_does_not_pass_for_a_shorter_one(tmp_path, writer, capfd):
    page = np.random.default_rng(0).integers(0, 256, (90, 80), np.uint8)
    path = tmp_path / "stack.tif"
    if writer == "pillow":
        pages = [Image.fromarray(page)] * 10
        pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    elif writer == "tifffile":
        with tifffile.TiffWriter(path) as tiff:
            for _ in range(10):
                tiff.write(page, metadata=None, photometric="minisblack")
    else:
        tifffile.imwrite(path, np.stack([page] * 10), imagej=True)
    assert readers.count_pages(path) == 10
    path.write_bytes(path.read_bytes()[: int(0.65 * path.stat().st_size)])
    for read in (
        readers.count_pages,
        pixel_size.read_pixel_size,
        lambda path: list(readers.read_pages(path)),
    ):
        with pytest.raises(UnreadableError, match=r"stack\.tif: cut short"):
            read(path)
    assert capfd.readouterr().err == ""


def test_pages_of_different_sizes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY)
        tiff.write(GREY[:9])
    with pytest.raises(UnreadableError, match="differ in size"):
        readers.count_pages(tmp_path / "a.tif")
