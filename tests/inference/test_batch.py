import functools
import threading
import time

import numpy as np
import pytest
from conftest import run_predict
from PIL import Image

import predict
from membrane.inference import batch, neighbours
from membrane.inference.batch import PredictionConfig
from membrane.inference.corrections import Corrections
from membrane.inference.sources import Source, find_needed
from membrane.io.normalization import make_normalizer, sample_pixels, to_grey


class Watched:
    """A predictor that is slower with dark slices, and knows how many it had at once."""

    def __init__(self):
        self.now, self.most, self.count, self.lock = 0, 0, 0, threading.Lock()

    def __call__(self, image, scale, normalize):
        with self.lock:
            self.now, self.count = self.now + 1, self.count + 1
            self.most = max(self.most, self.now)
        time.sleep(0.05 if image.mean() < 128 else 0.01)
        with self.lock:
            self.now -= 1
        return normalize(image).clip(0, 1)

    def stop(self):
        self.stopped = True


@pytest.fixture
def sources(tmp_path):
    found = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        image = np.random.default_rng(number).integers(0, 256 if number % 2 else 128, (20, 30))
        Image.fromarray(image.astype(np.uint8)).save(path)
        found.append(Source(path, path.name, 1, number))
    return found


def predict_all(sources, folder, predictor, workers=3, together=True, **others):
    known = {
        "pixel_size": None,
        "override_pixel_size": None,
        "invert": False,
        "probability": True,
        "submission": False,
        "labels": False,
        "together": together,
        "max_pixels": 10_000,
        "channel": None,
        "thumbnail_pages": frozenset({3}),
        "viewer_pages": frozenset({3}),
        "polarity_sample": frozenset({3}),
        "corrections": Corrections(),
    }
    config = PredictionConfig(**known | others)

    def work(page):
        page.image = to_grey(page.image)
        page.normalize = make_normalizer(sample_pixels(page.image))
        if page.index in needed:
            page.probability = predictor(page.image, page.scale, page.normalize)
            page.segments = predict.threshold_map(page.probability, 0.5)
        return page

    needed = find_needed(sources, folder, neighbours.REACH if together else 0)
    with batch.open_threads(workers, predictor) as pool:
        pages = batch.read_slices(sources, folder, config)
        pages = batch.in_flight(work, pages, pool, workers)
        pages = batch.close_gaps(pages, 0.5, config)
        finish = functools.partial(batch.finish_page, config=config)
        yield from batch.in_flight(finish, pages, pool, workers)


def test_pages_come_in_order_though_several_are_computed_at_once(sources, tmp_path):
    predictor = Watched()
    pages = list(predict_all(sources, tmp_path / "masks", predictor))
    assert [page.name for page in pages] == [source.file.name for source in sources]
    assert 1 < predictor.most <= 3
    assert all(page.mask.shape == page.map.shape == (20, 30) for page in pages)
    assert [bool(page.thumbnails) for page in pages] == [number == 3 for number in range(8)]


def test_huge_slices_are_computed_one_at_a_time(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "PIXELS_IN_FLIGHT", 100)
    predictor = Watched()
    assert len(list(predict_all(sources, tmp_path / "masks", predictor))) == 8
    assert predictor.most == 1


def test_a_damaged_file_has_its_place_and_reason(sources, tmp_path):
    sources[4].file.write_bytes(sources[4].file.read_bytes()[:60])
    pages = list(predict_all(sources, tmp_path / "masks", Watched()))
    assert [bool(page.error) for page in pages] == [number == 4 for number in range(8)]
    assert "4.png" in pages[4].error


def test_colour_counts_as_one_pixel_towards_the_limit(tmp_path):
    Image.new("RGB", (90, 90)).save(tmp_path / "c.png")
    sources = [Source(tmp_path / "c.png", "c.png", 1, 0)]
    for limit, refused in ((10_000, False), (8_000, True)):
        (page,) = predict_all(sources, tmp_path / "masks", Watched(), 1, max_pixels=limit)
        assert bool(page.error) == refused


def test_masks_that_lie_there_are_not_computed_again(sources, tmp_path):
    (tmp_path / "masks/probability").mkdir(parents=True)
    Image.new("L", (30, 20), 7).save(tmp_path / "masks/5.png")
    Image.new("L", (30, 20), 9).save(tmp_path / "masks/probability/5.png")
    for together, predicted in ((True, 8), (False, 7)):
        predictor = Watched()
        pages = list(predict_all(sources, tmp_path / "masks", predictor, together=together))
        assert (pages[5].mask == 7).all() and (pages[5].map == 9).all()
        assert predictor.count == predicted  # the neighbours' masks depend on it
    for number in (0, 1, 2, 3, 4, 6):
        Image.new("L", (30, 20), 7).save(tmp_path / f"masks/{number}.png")
        Image.new("L", (30, 20), 9).save(tmp_path / f"masks/probability/{number}.png")
    predictor = Watched()
    pages = list(predict_all(sources, tmp_path / "masks", predictor))
    assert predictor.count == 1 + neighbours.REACH and (pages[7].mask != 7).any()


def test_leaving_early_leaves_no_work_behind(sources, tmp_path):
    before = threading.active_count()
    predictor = Watched()
    pages = predict_all(sources, tmp_path / "masks", predictor)
    next(pages)
    pages.close()
    assert threading.active_count() == before and predictor.stopped


def test_a_slice_over_the_limit_is_refused_and_the_rest_done(outputs, folder, tmp_path, capsys):
    assert run_predict(folder, "--output", tmp_path / "masks", "--max-pixels", "2000") == 1
    assert "c.jpg: 64x64 px, over 2,000" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "masks").glob("*.png")} == {"a.png", "b 2.png"}


@pytest.mark.parametrize("twin", ["a.tif", "A.jpg"])
def test_two_slices_of_one_name_are_refused_before_work(outputs, folder, tmp_path, capsys, twin):
    Image.new("L", (9, 9)).save(folder / twin)
    assert run_predict(folder, "--output", tmp_path / "masks") == 2
    assert "would both be written" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
