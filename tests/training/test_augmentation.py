import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter

import data
from membrane.synthetic import make_slice
from membrane.training import augmentation
from membrane.training.augmentation import load_slices, make_tile


def make(images, labels, numbers, seed=0):
    """Tiles of these numbers as arrays: images, labels (number, 256, 256, 1)."""
    slices = load_slices(images, labels)
    make_one = tf.function(lambda number: make_tile(slices, seed, number))
    tiles = [make_one(tf.constant(number, tf.int64)) for number in numbers]
    return tuple(np.stack(half) for half in zip(*tiles, strict=True))


@pytest.fixture
def small(monkeypatch):
    """Tiles of 64 px, which take a fraction of the time."""
    monkeypatch.setattr(augmentation, "TILE", 64)


@pytest.fixture
def plain(monkeypatch):
    """Neither exposure nor focus nor noise."""
    monkeypatch.setattr(augmentation, "augment_intensity", lambda image, seed: image)


def test_no_tile_of_a_held_out_slice_is_trained_on(plain):
    names = [f"{number}" for number in range(10)]
    images = [np.full((280, 270), number / 16, np.float32) for number in range(10)]
    pairs = data.Pairs(names, images, [image >= 0 for image in images])
    training, _ = data.hold_out(pairs, "4-6")
    tiles = data.tiles(training, range(80), 8)
    seen = {float(level) for batch, _ in tiles for level in np.unique(batch)}
    assert {round(level * 16, 3) for level in seen} == {0, 1, 2, 6, 7, 8, 9}


@pytest.mark.parametrize("size", [(300, 400), (256, 256), (90, 300)])
def test_image_and_label_move_together(plain, size):
    coarse = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    image = coarse[np.ix_(np.arange(size[0]) // 40 % 8, np.arange(size[1]) // 40 % 8)]
    images, labels = make([image], [image > 0.5], range(32))
    # between a light and a dark pixel, where a deformed tile is read, both may round either way
    assert np.mean(labels == (images > 0.5)) > 0.99


def test_tiles_have_their_size_whatever_the_slices_have(small):
    for size in ((1, 1), (1, 700), (65, 3)):
        image = np.full(size, 0.5, np.float32)
        images, labels = make([image, image], [image > 0, image > 1], range(12))
        assert images.shape == labels.shape == (12, 64, 64, 1)
        assert np.isfinite(images).all() and {0, 1} == set(np.unique(labels))


def test_label_follows_the_image_exactly_without_deformation(plain, monkeypatch):
    monkeypatch.setattr(augmentation, "ELASTIC_FRACTION", 0.0)
    image = np.random.default_rng(0).random((300, 311)).astype(np.float32)
    images, labels = make([image], [image > 0.5], range(8))
    assert np.array_equal(labels, images > 0.5) and np.isin(images, image).all()


def test_all_eight_flips_and_rotations_occur(plain, monkeypatch):
    monkeypatch.setattr(augmentation, "ELASTIC_FRACTION", 0.0)
    image = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    eight = [np.rot90(turned, k) for turned in (image, image[:, ::-1]) for k in range(4)]
    images, _ = make([image], [image > 0.5], range(80))
    found = [[np.array_equal(one, tile[..., 0]) for one in eight] for tile in images]
    assert np.sum(found) == 80 and np.any(found, axis=0).all()


def test_every_place_of_every_slice_is_reached_and_none_beyond(plain, small, monkeypatch):
    monkeypatch.setattr(augmentation, "ELASTIC_FRACTION", 0.0)
    first = np.arange(66 * 68, dtype=np.float32).reshape(66, 68)
    second = -1 - np.arange(64 * 67, dtype=np.float32).reshape(64, 67)
    images, _ = make([first, second], [first >= 0, second >= 0], range(400))
    corners = {float(tile.min()) for tile in images if tile.min() >= 0}
    assert corners == {row * 68 + col for row in range(3) for col in range(5)}
    assert {float(tile.max()) for tile in images if tile.max() < 0} == {-1, -2, -3, -4}


def test_a_slice_smaller_than_a_tile_is_continued_by_reflection(plain, monkeypatch):
    monkeypatch.setattr(augmentation, "ELASTIC_FRACTION", 0.0)
    image = np.random.default_rng(0).random((100, 90)).astype(np.float32)
    images, _ = make([image], [image > 0.5], range(40))
    padded = np.pad(image, [(0, 156), (0, 166)], mode="reflect")
    assert any(np.array_equal(tile[..., 0], padded) for tile in images)


FRACTIONS = (("ELASTIC_FRACTION", 0.375), ("GAMMA_FRACTION", 0.5), ("BLUR_FRACTION", 0.25),
             ("NOISE_FRACTION", 0.25))  # fmt: skip


@pytest.mark.parametrize("name, fraction", FRACTIONS)
def test_a_fraction_of_the_tiles_is_changed_and_each_draws_for_itself(
    small, monkeypatch, name, fraction
):
    for other, _ in FRACTIONS:
        monkeypatch.setattr(augmentation, other, 0.0)
    monkeypatch.setattr(augmentation, "CONTRAST", 1.0)
    monkeypatch.setattr(augmentation, "BRIGHTNESS", 0.0)
    image, interior = make_slice(64, 64, 1)
    image = image.astype(np.float32) / 255
    before, _ = make([image], [interior], range(96))
    monkeypatch.setattr(augmentation, name, fraction)
    after, _ = make([image], [interior], range(96))
    changed = np.abs(after - before).max((1, 2, 3)) > 1e-3
    assert abs(changed.mean() - fraction) < 0.12
    assert not changed.all() and len(set(changed[:8])) == 2  # not always the first of a batch


def test_augmentation_has_its_stated_strength(monkeypatch):
    monkeypatch.setattr(augmentation, "ELASTIC_FRACTION", 0.0)
    flat = np.full((300, 300), 0.5, np.float32)
    images, _ = make([flat], [flat > 0], range(200))
    levels, noise = images.mean((1, 2, 3)), images.std((1, 2, 3))
    assert 0.28 < levels.min() < 0.37 and 0.66 < levels.max() < 0.76
    assert 0.1 < noise.max() < 0.121


def test_a_deformation_is_smooth_and_of_its_stated_size():
    line = tf.range(256, dtype=tf.int64)
    moves = []
    for number in range(60):
        rows, cols = augmentation.deform(line[:, None], line[None, :], [0, number])
        moves += [rows - np.arange(256)[:, None], cols - np.arange(256)[None, :]]
    moves = np.stack(moves)
    assert 0.5 < np.std(moves) / augmentation.ELASTIC_SIGMA < 1
    assert np.abs(np.diff(moves, axis=1)).max() < 3


def test_blur_is_gaussian_of_the_drawn_width():
    image = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    for sigma in (0.0, 0.6, 1.3):
        blurred = augmentation.blur(tf.constant(image[..., None]), tf.constant(sigma))
        expected = gaussian_filter(image, sigma, mode="mirror")
        assert np.allclose(blurred[..., 0], expected, atol=2e-3)


def test_tiles_depend_on_seed_and_number_alone_whatever_the_batch(small):
    images, labels = zip(*[make_slice(100, 80, seed) for seed in range(3)], strict=True)
    images = [image.astype(np.float32) / 255 for image in images]
    pairs = data.Pairs(["a", "b", "c"], images, labels)

    def cut(numbers, batch_size, seed=0):
        return np.concatenate([image for image, _ in data.tiles(pairs, numbers, batch_size, seed)])

    first = cut(range(16), 8)
    assert first.shape == (16, 64, 64, 1)
    assert np.array_equal(first, cut(range(16), 2)) and np.array_equal(
        first[8:], cut(range(8, 16), 4)
    )
    assert not np.array_equal(first, cut(range(16), 8, seed=1))
    assert len({tile.tobytes() for tile in first}) == 16
