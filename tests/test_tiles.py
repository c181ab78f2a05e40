import numpy as np
import pytest
import tensorflow as tf
import tiles
from scipy.ndimage import gaussian_filter
from synthetic import make_slice
from tiles import TileSampler

import data


def numbers(first, count=8):
    return tf.range(first, first + count, dtype=tf.int64)


def test_no_tile_of_a_held_out_slice_is_trained_on(monkeypatch):
    monkeypatch.setattr(tiles, "_draw_microscope", lambda images, seeds: images)
    names = [f"{number}" for number in range(10)]
    images = [np.full((280, 270), number / 16, np.float32) for number in range(10)]
    training, _ = data.split(data.Pairs(names, images, [image >= 0 for image in images]), "4-6")
    sampler = TileSampler(training.images, training.labels, 0)
    seen = {float(v) for n in range(0, 80, 8) for v in np.unique(sampler(numbers(n))[0])}
    assert {round(value * 16, 3) for value in seen} == {0, 1, 2, 6, 7, 8, 9}


@pytest.mark.parametrize("size", [(300, 400), (256, 256), (90, 300)])
def test_image_and_label_move_together(monkeypatch, size):
    monkeypatch.setattr(tiles, "_draw_microscope", lambda images, seeds: images)
    coarse = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    image = coarse[np.ix_(np.arange(size[0]) // 40 % 8, np.arange(size[1]) // 40 % 8)]
    sampler = TileSampler([image], [image > 0.5], 0)
    for first in range(0, 48, 8):
        images, labels = (half.numpy() for half in sampler(numbers(first)))
        # between a light and a dark pixel, where a deformed tile is read, both may round either way
        assert np.mean(labels == (images > 0.5)) > 0.99


def test_tiles_have_their_size_whatever_the_slices_have():
    image = np.full((1, 1), 0.5, np.float32)
    for half in TileSampler([image, image], [image > 0, image > 1], 0)(numbers(0)):
        assert half.shape == (8, 256, 256, 1)


def no_moves(count, seed, spread):
    return tf.zeros((2, count, tiles.TILE, tiles.TILE))


def test_label_follows_the_image_exactly_without_deformation(monkeypatch):
    monkeypatch.setattr(tiles, "_draw_microscope", lambda images, seeds: images)
    monkeypatch.setattr(tiles, "_draw_deformation", no_moves)
    image = np.random.default_rng(0).random((300, 311)).round(2).astype(np.float32)
    sampler = TileSampler([image], [image > 0.5], 0)
    images, labels = sampler(numbers(0))
    assert np.array_equal(labels, images > 0.5001)


def test_all_eight_flips_and_rotations_occur(monkeypatch):
    monkeypatch.setattr(tiles, "_draw_microscope", lambda images, seeds: images)
    monkeypatch.setattr(tiles, "_draw_deformation", no_moves)
    image = np.random.default_rng(0).random((256, 256)).round(2).astype(np.float32)
    eight = [np.rot90(turned, k) for turned in (image, image[:, ::-1]) for k in range(4)]
    sampler = TileSampler([image], [image > 0.5], 0)
    seen = set()
    for first in range(0, 80, 8):
        for tile in sampler(numbers(first))[0].numpy()[..., 0]:
            seen |= {k for k, one in enumerate(eight) if np.allclose(one, tile, atol=1e-3)}
    assert seen == set(range(8))


def test_augmentation_has_its_stated_strength(monkeypatch):
    flat = np.full((300, 300), 0.5, np.float32)
    sampler = TileSampler([flat], [flat > 0], 0)
    images = np.concatenate([sampler(numbers(n))[0].numpy() for n in range(0, 400, 8)])
    levels, noise = images.mean((1, 2, 3)), images.std((1, 2, 3))
    assert 0.28 < levels.min() < 0.37 and 0.66 < levels.max() < 0.76
    assert np.mean(noise > 1e-4) == 1 / 4 and 0.1 < noise.max() < 0.121
    monkeypatch.setattr(tiles, "_draw_microscope", lambda images, seeds: images)
    ramp = np.tile(np.arange(2048, dtype=np.float32) / 2048, (300, 1))
    sampler = TileSampler([ramp], [ramp > 0.5], 0)
    bent = []
    for first in range(0, 80, 8):
        cut = sampler(numbers(first))[0].numpy()[..., 0]
        bent += [min(np.ptp(tile, axis=axis).max() for axis in (0, 1)) > 1e-3 for tile in cut]
    assert np.mean(bent) == 3 / 8


def test_blur_is_gaussian_of_the_drawn_width():
    images = np.random.default_rng(0).random((3, 256, 256, 1)).astype(np.float32)
    sigma = np.array([0.0, 0.6, 1.3], np.float32)
    blurred = tiles._blur(tf.constant(images), tf.constant(sigma.reshape(3, 1, 1, 1))).numpy()
    for image, width, result in zip(images[..., 0], sigma, blurred[..., 0], strict=True):
        assert np.allclose(result, gaussian_filter(image, width, mode="mirror"), atol=2e-3)


def test_tiles_depend_on_seed_and_number_alone():
    images, labels = zip(*[make_slice(300, 280, seed) for seed in range(3)], strict=True)
    images = [image.astype(np.float32) / 255 for image in images]
    first, again, other = (TileSampler(images, labels, seed) for seed in (0, 0, 1))
    first(numbers(0))
    assert np.array_equal(first(numbers(16))[0], again(numbers(16))[0])
    assert not np.array_equal(first(numbers(16))[0], first(numbers(24))[0])
    assert not np.array_equal(first(numbers(16))[0], other(numbers(16))[0])
