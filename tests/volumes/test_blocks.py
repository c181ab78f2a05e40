import argparse
import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
import tifffile
import zarr
from conftest import PRETRAINED, check_refusal, read_page_data, run_predict
from ome_zarr.writer import write_image
from PIL import Image

import predict
from membrane import synthetic
from membrane.inference import masks, neighbours, outputs, precision
from membrane.inference.loading import load_network
from membrane.inference.predictor import Predictor
from membrane.io import normalization, tissue
from membrane.io.labels import to_mask_bytes
from membrane.viewer import page
from membrane.volumes import blocks, dask_cluster, jobs, pyramid, scheduler, store

TISSUE = synthetic.make_slice(130, 150, 0)[0]
NOISE = np.random.default_rng(0).normal(0, 60, (6, 180, 200))[..., :140]
STACK = np.stack([TISSUE[2 * z :, 2 * z :][:120, :140] for z in range(6)])
STACK = np.clip(STACK + NOISE[:, :120], 0, 255).astype(
    np.uint8
)  # each slice with faults of its own


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A volume of synthetic slices as Zarr, and blocks of two slices."""
    monkeypatch.setattr(jobs, "DEPTH", 2)
    zarr.create_array(str(tmp_path / "stack.zarr"), data=STACK, chunks=(2, 32, 32))
    return tmp_path / "stack.zarr"


def run(source, output, *flags):
    return run_predict(source, "--output", output, "--model", PRETRAINED, *flags)


def make_job(source, folder, block=(2, 4, 4), levels=(((2, 4, 4), (1, 1, 1)),), **flags):
    known = {"max_pixels": 10**6, "threshold": 0.6, "plain": False, "tta": False}
    known |= {"channel": None, "invert": False, "probability": False, "neighbours": False}
    known["labels"] = False
    return jobs.Job(
        flags=argparse.Namespace(**known | flags),
        source=source,
        state="",
        model=PRETRAINED / "model.keras",
        masks=folder / f"{source.stem}.zarr",
        threshold_map=predict.threshold_map,
        scaling={},
        scale=(1.0, 1.0),
        block=block,
        levels=levels,
    )


def read(path):
    return zarr.open_group(str(path), mode="r")["0"][:]


def test_folder_stack_and_zarr_give_the_same_masks(stack, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    for z, image in enumerate(STACK):
        Image.fromarray(image).save(tmp_path / "folder" / f"{z}.png")
    tifffile.imwrite(tmp_path / "stack.tif", STACK)
    assert run(tmp_path / "folder", tmp_path / "a", "--probability") == 0
    assert run(tmp_path / "stack.tif", tmp_path / "b") == 0
    assert run(stack, tmp_path / "c", "--probability") == 0
    assert run(tmp_path / "folder", tmp_path / "d", "--zarr") == 0
    assert run(tmp_path / "stack.tif", tmp_path / "e", "--zarr") == 0
    masks = np.stack([np.asarray(Image.open(tmp_path / "a" / f"{z}.png")) for z in range(6)])
    assert 0.02 < (masks == 0).mean() < 0.98
    assert np.array_equal(tifffile.imread(tmp_path / "b" / "stack.tif"), masks)
    for place in ("c/stack.zarr", "d/folder.zarr", "e/stack.zarr"):
        assert np.array_equal(read(tmp_path / place), masks)
    maps = [np.asarray(Image.open(tmp_path / f"a/probability/{z}.png")) for z in range(6)]
    assert np.array_equal(read(tmp_path / "c/probability/stack.zarr"), np.stack(maps))
    assert run(stack, tmp_path / "f", "--no-neighbours") == 0
    assert not np.array_equal(read(tmp_path / "f/stack.zarr"), masks)
    about = json.loads((tmp_path / "c/about/prediction.json").read_text())
    assert about["finished"] and np.allclose(
        list(about["membrane"].values()), (masks == 0).mean((1, 2))
    )
    assert (tmp_path / "c/about/contact_sheet.png").is_file()
    assert not (tmp_path / "c/about/blocks").exists()
    assert "6 masks in" in capsys.readouterr().out


def test_cells_of_a_volume_are_numbered_as_those_of_a_stack(stack, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST", 80)  # so that the masks have two levels
    tifffile.imwrite(tmp_path / "stack.tif", STACK, photometric="minisblack")
    flags = ("--labels", "--pixel-size", 4, "--slice-thickness", 50)
    assert run(tmp_path / "stack.tif", tmp_path / "a", *flags) == 0
    assert run(stack, tmp_path / "b", *flags) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Cells: ")]
    assert len(said) == 2 and said[0] == said[1]
    labels = read(tmp_path / "b/labels/stack.zarr")
    assert labels.dtype == np.uint32 and labels.max() > 10
    assert np.array_equal(labels, tifffile.imread(tmp_path / "a/labels/stack.tif"))
    for name in ("cells.csv", "objects.csv"):
        one, other = ((tmp_path / run / "labels" / name).read_text() for run in "ab")
        for z in range(6):
            one = one.replace(f"stack.tif[{z + 1}]", f"z {z}")
        assert one == other and ("volume_um3" in other) == (name == "objects.csv")
    assert not (tmp_path / "b/about/labels").exists()
    shown = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        listed = read_page_data(folder)["slices"]
        assert len(listed) == 6 and all(page.LABELS in one["kinds"] for one in listed)
        files = [
            [page.picture_path(folder, one["file"], end) for end in (page.LABELS, page.NUMBERS)]
            for one in listed
        ]
        shown.append([(a.read_bytes(), b.read_text().partition(", ")[2]) for a, b in files])
    assert shown[0] == shown[1]
    monkeypatch.setattr(jobs, "SIDE", 100)
    assert run(stack, tmp_path / "c", "--labels") == 2
    check_refusal(capsys, "these have 120x140")
    assert not (tmp_path / "c").exists()


def test_the_grey_values_of_a_large_slice_are_the_same_from_a_file_and_from_chunks(
    stack, tmp_path, monkeypatch
):
    monkeypatch.setattr(normalization, "PATCH", 6)
    tifffile.imwrite(tmp_path / "stack.tif", STACK, photometric="minisblack")
    sources = [store.open_volume(path, 10**6) for path in (stack, tmp_path / "stack.tif")]
    region = (slice(3, 40), slice(0, 50))
    (chunked, many), (stored, others) = (blocks._read(one, slice(1, 4), region) for one in sources)
    assert np.array_equal(chunked, stored) and chunked.shape == (3, 37, 50)
    for one, other in zip(many, others, strict=True):
        assert one.size == 64 * 36 and np.array_equal(one, other)
    reads = []
    file = dataclasses.replace(sources[1], read=lambda *a: reads.append(a) or sources[1].read(*a))
    for z in range(2):
        blocks._read(file, slice(z, z + 1), region)
    assert len(reads) == 2


def test_grey_values_are_measured_on_the_tissue_that_no_patch_meets(tmp_path, monkeypatch):
    monkeypatch.setattr(normalization, "PATCH", 4)
    monkeypatch.setattr(normalization, "PATCHES", 4)
    image = np.zeros((300, 200), np.uint8)
    image[100:160, 60:140] = synthetic.make_slice(60, 80, 0)[0]
    zarr.create_array(str(tmp_path / "a.zarr"), data=image[None], chunks=(1, 64, 64))
    source = store.open_volume(tmp_path / "a.zarr", 10**6)
    _, (sample,) = blocks._read(source, slice(0, 1), (slice(0, 50), slice(0, 50)))
    assert sample.size == 60 * 80 and np.array_equal(sample, normalization.sample_pixels(image))


@pytest.mark.parametrize(
    ("plain", "together"), [pytest.param(True, False, marks=pytest.mark.slow), (False, True)]
)
def test_masks_do_not_depend_on_the_blocks(tmp_path, monkeypatch, plain, together):
    monkeypatch.setattr(masks, "WINDOW", 96)
    monkeypatch.setattr(jobs, "VIEW", 96)
    for module in (masks, blocks):
        monkeypatch.setattr(module, "WINDOW_HALO", 32)
    monkeypatch.setattr(jobs, "SIDE", 96)
    monkeypatch.setattr(jobs, "DEPTH", 2)
    monkeypatch.setattr(normalization, "PATCH", 8)  # grey values are measured on a part
    monkeypatch.setattr(tissue, "FLAT", 5)
    monkeypatch.setattr(tissue, "GAP", 5)
    monkeypatch.setattr(tissue, "NEAR", 9)
    for module in (tissue, blocks):
        monkeypatch.setattr(module, "REACH", 24)
    monkeypatch.setattr(neighbours, "MIN_BORDERS", 2)  # in a window of so few pixels
    tissue_of_all = synthetic.make_slice(190, 160, 0)[0]
    big = np.stack([tissue_of_all[2 * z :, 2 * z :][:180, :140] for z in range(5)])
    big[2] = synthetic.make_slice(180, 140, 1)[0]  # the next but one serves
    big = np.clip(big + NOISE[:5], 0, 255).astype(np.uint8)
    big[:, 20:70, 30:101] = 0  # no tissue
    zarr.create_array(str(tmp_path / "big.zarr"), data=big, chunks=(2, 32, 32))
    source = store.open_volume(tmp_path / "big.zarr", 10**6)
    predictor = Predictor(load_network(PRETRAINED / "model.keras"), tile=(128, 128))
    shape = jobs.choose_block(source.shape)
    assert shape == (2, 96, 96)
    plan = {"block": shape, "levels": pyramid.plan_levels(source.shape, source.voxel)}
    settings = {"plain": plain, "probability": True, "neighbours": together}
    job = make_job(tmp_path / "big.zarr", tmp_path / "out", **settings, **plan)
    pool = scheduler.open_local(job, source, predictor, 2)
    membrane, failed, precisions, agreed, _ = scheduler.run_job(job, source, pool, [].append)
    assert failed == {} and precisions == {precision.choose_precision()[0]}
    assert (0 < sum(agreed) < len(agreed) < 5) == together  # by slice, whatever its blocks
    found, maps = read(job.masks), read(tmp_path / "out/probability/big.zarr")
    slices, empty = [], []
    for z, image in enumerate(big):
        sample, blank = normalization.sample_pixels(image), tissue.find_blank(image)
        image = tissue.fill_blank(image, blank, sample)
        probability = predictor(image, normalize=normalization.make_normalizer(sample))
        probability[blank] = 0.0
        empty.append(blank)
        slices.append((z, predict.threshold_map(probability, 0.6, plain)))
        assert np.array_equal(maps[z], normalization.to_bytes(probability))
    for z, segmentation, _ in neighbours.close_gaps(slices, 0.6, together):
        mask = segmentation.mask()
        assert np.array_equal(found[z], to_mask_bytes(mask.copy()))
        assert membrane[f"z {z}"] == pytest.approx(np.mean(~mask[~empty[z]]))
    alone = [segments.close_gaps(0.6).mask() for _, segments in slices]
    assert np.array_equal(found, to_mask_bytes(np.stack(alone))) != together


def test_upper_levels_are_means_of_the_level_below(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST", 32)
    assert run(stack, tmp_path / "masks", "--probability") == 0
    for name in ("stack.zarr", "probability/stack.zarr"):
        group = zarr.open_group(str(tmp_path / "masks" / name), mode="r")
        levels = [group[str(number)][:].astype(float) for number in range(3)]
        assert [level.shape for level in levels] == [(6, 120, 140), (6, 60, 70), (6, 30, 35)]
        for fine, coarse in itertools.pairwise(levels):
            padded = np.pad(fine, [(0, 0), *((0, side % 2) for side in fine.shape[1:])], "edge")
            means = padded.reshape(6, coarse.shape[1], 2, coarse.shape[2], 2).mean((2, 4))
            assert np.abs(coarse - means).max() <= 0.5 and np.ptp(coarse) > 200


def test_resampled_slices_are_the_same_by_folder_and_by_block(stack, tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", STACK)
    flags = ("--pixel-size", 6)
    assert run(stack, tmp_path / "a", *flags) == 0
    assert run(tmp_path / "stack.tif", tmp_path / "b", *flags) == 0
    found = store.open_volume(tmp_path / "a/stack.zarr", 10**6)
    assert found.voxel == (None, 6.0, 6.0)
    masks = tifffile.imread(tmp_path / "b/stack.tif")
    assert np.array_equal(read(tmp_path / "a/stack.zarr"), masks)


def test_a_truncated_chunk_costs_the_blocks_that_need_it_until_it_is_mended(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(jobs, "DEPTH", 2)
    slices = np.concatenate([STACK, STACK])[:, :90, :100]
    stack = tmp_path / "stack.zarr"
    zarr.create_array(str(stack), data=slices, chunks=(2, 32, 32))
    assert run(stack, tmp_path / "whole") == 0
    chunk = stack / "c/1/0/2"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:20])
    assert run(stack, tmp_path / "masks") == 1
    printed = capsys.readouterr()
    assert printed.err.count("chunk c/1/0/2 cannot be read") == 1 and "6 masks in" in printed.out
    assert "the same command" in printed.out and "Look at" not in printed.out.split("masks")[-1]
    part = read(tmp_path / "masks/stack.zarr")
    whole = read(tmp_path / "whole/stack.zarr")
    assert np.array_equal(part[6:], whole[6:]) and not part[:6].any()
    chunk.write_bytes(content)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        untouched = scheduler.predict_block
        patch.setattr(scheduler, "predict_block", lambda *a: done.append(a[-1]) or untouched(*a))
        assert run(stack, tmp_path / "masks") == 0
    assert sorted(block.start for block in done) == [(0, 0, 0), (2, 0, 0), (4, 0, 0)]
    assert np.array_equal(read(tmp_path / "masks/stack.zarr"), whole)
    listed = read_page_data(tmp_path / "masks")["slices"]  # also those of the interrupted command
    assert [one["name"] for one in listed] == [f"z {z}" for z in range(12)]
    assert all(one["editable"] for one in listed)


def test_the_page_lists_an_even_sample_of_what_would_take_too_much_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PAGE_PIXELS", 3 * 90 * 100 + 1)
    tifffile.imwrite(tmp_path / "s.tif", STACK[:5, :90, :100], photometric="minisblack")
    flags = ("--no-tta", "--no-neighbours")
    for name, more in (("folder", ()), ("volume", ("--zarr",))):
        assert run(tmp_path / "s.tif", tmp_path / name, *flags, *more) == 0
        listed = read_page_data(tmp_path / name)["slices"]
        assert [one["name"] for one in listed] == ["s[1]", "s[3]", "s[5]"]
    assert len(outputs.choose_listed(5000, 1)) == 1000


def test_a_cell_painted_where_no_tissue_is_counts_as_tissue(tmp_path):
    slices = STACK[:3, :90, :100].copy()
    slices[1], slices[2, 40:] = 0, 0
    (tmp_path / "slices").mkdir()
    for z, image in enumerate(slices):
        Image.fromarray(image).save(tmp_path / f"slices/{z}.png")
    assert run(tmp_path / "slices", tmp_path / "first") == 0
    keys = {one["name"]: one["key"] for one in read_page_data(tmp_path / "first")["slices"]}
    stroke = [{"kind": "cell", "size": 64, "points": [[20, 60], [80, 60]]}]
    made = {"slices": {"1": stroke, "2": stroke}, "keys": keys}
    (tmp_path / "made.json").write_text(json.dumps(made))
    said, edits = [], []
    for folder, more in (("a", ()), ("b", ("--zarr",))):
        flags = ("--corrections", tmp_path / "made.json", *more)
        assert run(tmp_path / "slices", tmp_path / folder, *flags) == 0
        about = json.loads((tmp_path / folder / "about/prediction.json").read_text())
        said.append(list(about["membrane"].values()))
        listed = read_page_data(tmp_path / folder)["slices"]
        assert [one["membrane"] for one in listed] == pytest.approx(said[-1])
        edits.append(
            [page.picture_path(tmp_path / folder, one["file"], page.EDIT) for one in listed]
        )
    assert said[0] == pytest.approx(said[1]) and min(said[0]) == said[0][1] == 0
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*edits, strict=True))


def test_a_block_of_nothing_but_membrane_is_not_taken_for_a_missing_one(tmp_path):
    job = make_job(tmp_path / "x.zarr", tmp_path)
    block = jobs.Block(0, (0, 0, 0), (2, 4, 4))
    pyramid.create_volume(job.masks, (None,) * 3, job.levels, job.block)
    pyramid.write_part(job.masks, 0, (0, 0, 0), np.zeros((2, 4, 4), np.uint8))
    assert jobs.read_marker(job, block) is None
    jobs.mark(job, block, {"membrane": [16, 16]})
    assert jobs.read_marker(job, block) == {"membrane": [16, 16]}


def test_other_settings_are_not_mixed_into_unfinished_masks(stack, tmp_path, capsys):
    chunk = stack / "c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    assert run(stack, tmp_path / "masks") == 1
    for flags in (("--threshold", 0.7), ("--invert",), ("--tta",)):
        assert run(stack, tmp_path / "masks", *flags) == 2
        assert "not empty" in capsys.readouterr().err


def test_a_dry_run_plans_and_writes_nothing(stack, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "PAGE_BYTES", 1e6)
    assert run(stack, tmp_path / "masks", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"; {6 * 120 * 140:,} MB for the page" in printed
    assert "6 × 120 × 140 (z, y, x)" in printed and "Blocks: 3 of 2 × 120 × 140" in printed
    assert "own pixels: 100%" in printed and "in 3 files" in printed and "pyramid" not in printed
    assert run(stack, tmp_path / "masks", "--dry-run", "--no-neighbours") == 0
    assert "own pixels: 0%" in capsys.readouterr().out
    assert "0.1 Mvoxel, 0 MB uncompressed" in printed and not (tmp_path / "masks").exists()


def test_a_zarr_without_the_libraries_names_what_to_install(stack, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("membrane.volumes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert run(stack, tmp_path / "masks") == 2
    assert "pip install -r requirements/cluster.txt" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "stack.tif", STACK)
    assert run(tmp_path / "stack.tif", tmp_path / "masks") == 0  # needs none of them
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run(stack, tmp_path / "masks", "--scheduler", "tcp://127.0.0.1:9") == 2
    assert "distributed is not installed" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_reported_in_one_line(
    stack, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 1)
    assert run(stack, tmp_path / "masks", "--scheduler", "tcp://127.0.0.1:9") == 2
    printed = capsys.readouterr().err
    assert "no Dask scheduler answers there" in printed and len(printed.splitlines()) == 1


def test_a_huge_slice_is_cut_where_windows_are_and_a_resampled_one_is_not():
    assert jobs.choose_block((200, 1024, 1024)) == (25, 1024, 1024)
    assert jobs.choose_block((30, 250, 250)) == (16, 250, 250)
    assert jobs.choose_block((9, 250, 250)) == (9, 250, 250)
    assert jobs.choose_block((1000, 10_000, 10_000)) == (8, 4096, 4096)
    assert jobs.choose_block((1000, 5000, 3000)) == (10, 4096, 3000)
    assert jobs.choose_block((1000, 900, 3000)) == (49, 900, 3000)
    assert jobs.choose_block((1000, 900, 900)) == (64, 900, 900)
    assert jobs.choose_block((100, 30_000, 3000), scale=(2.0, 2.0)) == (1, 30_000, 3000)


def test_parts_computed_in_different_precisions_are_reported(stack, tmp_path, monkeypatch, capsys):
    kinds = iter(["float32", "mixed_bfloat16", "float32"])  # of three blocks
    monkeypatch.setattr(blocks, "choose_precision", lambda: (next(kinds), "of two kinds"))
    assert run(stack, tmp_path / "masks") == 0
    assert "computed in float32 and mixed_bfloat16" in capsys.readouterr().out


def test_a_voxel_that_is_not_square_keeps_its_sides_and_padding_stays_empty(tmp_path):
    volume = STACK.copy()
    volume[:, :, :30] = 0
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    known = {"axes": "zyx", "axes_units": dict.fromkeys("zyx", "angstrom")}
    write_image(volume, group, scale={"z": 500.0, "y": 40.0, "x": 80.0}, scale_factors=(), **known)
    assert run(tmp_path / "a.zarr", tmp_path / "masks") == 0
    found = store.open_volume(tmp_path / "masks/a.zarr", 10**6)
    assert np.allclose(found.voxel, (50, 4, 8))
    assert read_page_data(tmp_path / "masks")["slices"][0]["pixel_size"] == 4
    assert not read(tmp_path / "masks/a.zarr")[:, :, :30].any()
    assert read(tmp_path / "masks/a.zarr")[:, :, 30:].mean() > 100


def test_a_voxel_that_no_micrograph_has_is_not_believed(tmp_path, capsys):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    known = {"axes": "zyx", "axes_units": dict.fromkeys("zyx", "micrometer")}
    write_image(STACK, group, scale=dict.fromkeys("zyx", 1.0), scale_factors=(), **known)
    assert run(tmp_path / "a.zarr", tmp_path / "masks") == 0
    assert "resampled" not in capsys.readouterr().out
    flags = ["--pixel-size", "160", "--max-pixels", "100000"]
    assert run(tmp_path / "a.zarr", tmp_path / "other", *flags) == 2
    check_refusal(capsys, "5600x4800 px at the model's pixel size, over 100,000")
    assert not (tmp_path / "other").exists()
