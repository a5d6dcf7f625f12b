"""What an epoch shows."""

import numpy as np
import pytest

from cnn_extract.train.recipe import SamplingRecipe
from cnn_extract.train.samples import draw_epoch, draw_weights, hardest, split_steps
from tests.cnn_extract.train.conftest import samples_of


def test_draw_frequencies_follow_logarithmic_class_weights(rng):
    """A4: rare classes are drawn as often as common ones, or by another rule."""
    labels = np.zeros((40, 2), int)
    labels[:36, 0] = 1
    labels[36:, 1] = 1
    samples = samples_of(labels)
    recipe = SamplingRecipe(draw="log-class")
    drawn = np.concatenate([draw_epoch(samples, recipe, rng) for _ in range(400)])
    share = (drawn >= 36).mean()
    weights = 1 + np.log(36 / np.array([36, 4]))
    wanted = 4 * weights[1] / (36 * weights[0] + 4 * weights[1])
    assert share == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / len(drawn)))


def test_an_image_weighs_the_mean_of_its_classes():
    """A4: images with many labels are drawn more often for their number alone."""
    labels = np.array([[1, 0], [1, 0], [1, 0], [1, 1]])
    rare = 1 + np.log(4)
    wanted = np.array([1, 1, 1, (1 + rare) / 2])
    np.testing.assert_allclose(draw_weights(samples_of(labels).labels), wanted / wanted.sum())


def test_shuffle_shows_each_image_once(rng):
    """Without sampling weights some images are never seen."""
    order = draw_epoch(samples_of(np.ones((50, 1))), SamplingRecipe(), rng)
    assert sorted(order) == list(range(50))
    assert list(order) != list(range(50))


def test_the_hardest_share_comes_again(rng):
    """A6: replayed images are not the hardest, or of another number."""
    losses = np.linspace(0, 1, 100).astype(np.float32)
    recipe = SamplingRecipe(hard_share=0.05)
    order = draw_epoch(samples_of(np.ones((100, 1))), recipe, rng, losses)
    counts = np.bincount(order, minlength=100)
    assert counts[95:].tolist() == [2] * 5
    assert (counts[:95] == 1).all()


def test_samples_without_a_loss_are_not_hard():
    """A6: images that were never drawn count as the hardest."""
    assert hardest(np.array([np.nan, 1.0, 2.0, np.nan]), 1.0).tolist() == [2, 1]


def test_listed_images_come_twice(rng):
    """A6: the list of `stacker curate` is ignored."""
    samples = samples_of(np.ones((4, 1)), listed_hard=np.array([0, 1, 0, 0], bool))
    order = draw_epoch(samples, SamplingRecipe(), rng)
    assert sorted(order) == [0, 1, 1, 2, 3]


def test_the_distillation_target_is_the_larger_of_label_and_weighted_teacher():
    """A27: target = max(y, 0.7 * teacher) is averaged, or the teacher overrules labels."""
    teacher = np.array([[0.9, 0.5, 0.1], [1.0, 0.0, 0.2]], np.float16)
    samples = samples_of([[1, 0, 0], [0, 1, 0]], teacher=teacher)
    got = samples.targets(np.array([0, 1]), 0.7)
    np.testing.assert_allclose(got, [[1, 0.35, 0.07], [0.7, 1, 0.14]], atol=1e-3)
    assert samples.targets(np.array([0]), 0.0).tolist() == [[1, 0, 0]]


def test_steps_hold_the_effective_batch():
    """A3: the optimiser steps after another number of images."""
    steps = split_steps(np.arange(2500), 1000)
    assert [len(step) for step in steps] == [1000, 1000, 500]
    np.testing.assert_array_equal(np.concatenate(steps), np.arange(2500))
