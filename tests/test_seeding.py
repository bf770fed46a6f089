"""Random numbers depend on where they are used, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from transferkit.seeding import stream, uniforms


def test_a_samples_numbers_do_not_depend_on_the_batch():
    whole = uniforms(3, 7, np.arange(100), 5)
    for batch in (np.array([42]), np.array([99, 0, 42]), np.arange(10, 50)):
        np.testing.assert_array_equal(uniforms(3, 7, batch, 5), whole[batch])


def test_more_numbers_leave_the_first_ones_as_they_are():
    np.testing.assert_array_equal(uniforms(0, 0, [4], 9)[:, :3], uniforms(0, 0, [4], 3))


@pytest.mark.parametrize("other", [(4, 7, 42), (3, 8, 42), (3, 7, 43)], ids=["seed", "epoch", "sample"])
def test_seed_epoch_and_sample_each_change_the_numbers(other):
    seed, epoch, sample = other
    assert not np.array_equal(uniforms(3, 7, [42], 8), uniforms(seed, epoch, [sample], 8))


def test_numbers_are_uniform_and_uncorrelated():
    numbers = uniforms(0, 0, np.arange(20_000), 4)
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03
    # Neighbouring samples and epochs must not echo each other either.
    neighbours = np.stack([numbers[:-1, 0], numbers[1:, 0], uniforms(0, 1, np.arange(19_999), 1)[:, 0]])
    assert np.abs(np.corrcoef(neighbours) - np.eye(3)).max() < 0.03


def test_streams_of_different_uses_differ():
    uses = ((), ("order",), ("order", 1), ("step", 1), ("step", 1, 1))
    drawn = [stream(0, *where).random() for where in uses]
    assert len(set(drawn)) == len(drawn)
