import numpy as np
import pytest

from membrane.synthetic import make_slice


def test_a_seed_gives_the_same_slice_and_another_seed_another():
    image, interior = make_slice(64, 80, 3)
    again = make_slice(64, 80, 3)
    assert np.array_equal(image, again[0]) and np.array_equal(interior, again[1])
    assert not np.array_equal(image, make_slice(64, 80, 4)[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (300, 5), (130, 131)])
def test_any_size(size):
    image, interior = make_slice(*size, 0)
    assert image.shape == interior.shape == size
    assert image.dtype == np.uint8 and interior.dtype == bool


def test_slices_resemble_em():
    image, interior = make_slice(512, 512, 1)
    assert 0.15 < 1 - interior.mean() < 0.35
    assert image[interior].mean() - image[~interior].mean() > 50
    assert 30 < image.std() < 60
