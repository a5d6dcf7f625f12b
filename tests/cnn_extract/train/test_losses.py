"""Losses against their formulas."""

import numpy as np
import pytest
import torch

from cnn_extract._torchvision import import_timm
from cnn_extract.train.losses import (
    am_softmax,
    class_weights,
    cross_entropy,
    focal,
    group_weights,
    make_loss,
    smooth,
    soft_fbeta,
    to_probabilities,
)
from cnn_extract.train.recipe import Stage

LOGITS = torch.tensor([[1.2, -0.7, 0.1], [-2.0, 0.4, 3.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
COUNTS = np.array([10, 5, 1])


def loss_of(stage, groups=("", "", ""), **settings):
    """Loss of the two images by a stage's settings."""
    return make_loss(stage, groups, COUNTS, **settings)(LOGITS, TARGETS).numpy()


def plain_bce():
    p = 1 / (1 + np.exp(-LOGITS.numpy().astype(np.float64)))
    y = TARGETS.numpy()
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def test_bce_is_summed_over_classes():
    """Losses are averaged over classes, which makes 1,000 classes a thousandth as loud."""
    np.testing.assert_allclose(loss_of(Stage(loss="bce")), plain_bce().sum(1), rtol=1e-5)


@pytest.mark.parametrize("focus", [0.0, 1.0, 2.0])
def test_focal_follows_the_formula(focus):
    """A4: easy examples are not turned down by (1 - p)**focus."""
    p = 1 / (1 + np.exp(-LOGITS.numpy().astype(np.float64)))
    y = TARGETS.numpy()
    right = np.where(y == 1, p, 1 - p)
    wanted = (1 - right) ** focus * -np.log(right)
    np.testing.assert_allclose(focal(LOGITS, TARGETS, focus).numpy(), wanted, rtol=1e-5)


def test_focal_without_focus_is_bce():
    """A4: the focal loss does not contain cross-entropy as its special case."""
    np.testing.assert_allclose(
        loss_of(Stage(loss="focal", focus=0.0)), loss_of(Stage(loss="bce")), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("none", [1, 1, 1]),
        ("log", [1, 1 + np.log(2), 1 + np.log(10)]),
        ("inverse", [0.1, 0.2, 1]),
        ("effective", [0.001 / (1 - 0.999**n) for n in (10, 5, 1)]),
    ],
)
def test_class_weights_follow_their_formulas(kind, raw):
    """B2: rare classes weigh other than the setting says."""
    wanted = np.array(raw) / np.mean(raw)
    np.testing.assert_allclose(class_weights(COUNTS, kind), wanted)


def test_class_weighted_focal_weighs_each_class():
    """B2: weights are applied to images, or not at all."""
    plain = focal(LOGITS, TARGETS, 2.0).numpy()
    wanted = (plain * class_weights(COUNTS, "effective")).sum(1)
    got = loss_of(Stage(loss="focal", class_weights="effective"))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_asymmetric_is_timms():
    """The asymmetric loss is another than timm's, or reduces over images."""
    import_timm()
    from timm.loss import AsymmetricLossMultiLabel

    each = [
        AsymmetricLossMultiLabel(gamma_neg=4.0, reduction="sum")(LOGITS[[k]], TARGETS[[k]])
        for k in range(2)
    ]
    got = loss_of(Stage(loss="asymmetric", focus=4.0))
    np.testing.assert_allclose(got, torch.stack(each).numpy(), rtol=1e-5)


def test_smoothing_moves_targets_to_the_mean():
    """A20: label smoothing leaves targets as they are, or moves them elsewhere."""
    wanted = torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    torch.testing.assert_close(smooth(TARGETS[0:1], 0.1)[0], wanted)
    smoothed = loss_of(Stage(loss="bce", smoothing=0.1))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    wanted = bce(LOGITS, smooth(TARGETS, 0.1), reduction="none").sum(1)
    np.testing.assert_allclose(smoothed, wanted.numpy(), rtol=1e-5)


def test_soft_fbeta_of_certain_predictions_is_the_fbeta_of_decisions():
    """A28: the soft F2 is no F2."""
    from sklearn.metrics import fbeta_score

    given = np.array([[1, 1, 0], [0, 1, 0]])
    logits = torch.tensor(np.where(given, 60.0, -60.0))
    score = [fbeta_score(TARGETS[k].numpy(), given[k], beta=2) for k in range(2)]
    got = 1 - soft_fbeta(logits, TARGETS).numpy()
    np.testing.assert_allclose(got, score, atol=1e-6)


def test_soft_fbeta_without_labels_rewards_silence():
    """A28: an image without labels divides by zero, or punishes saying nothing."""
    none = torch.zeros(1, 3)
    quiet = soft_fbeta(torch.full((1, 3), -60.0), none)
    loud = soft_fbeta(torch.full((1, 3), 60.0), none)
    assert quiet.item() == pytest.approx(0, abs=1e-6)
    assert loud.item() == pytest.approx(1, abs=1e-5)


def test_cross_entropy_with_one_label_is_torchs():
    """Softmax losses differ from cross-entropy where an image has one class."""
    labels = torch.tensor([2, 0])
    targets = torch.nn.functional.one_hot(labels, 3).float()
    wanted = torch.nn.functional.cross_entropy(
        LOGITS, labels, reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(cross_entropy(LOGITS, targets, 0.1), wanted)


def test_cross_entropy_of_an_image_without_labels_is_nothing():
    """Images without labels teach a softmax something, or give NaN."""
    assert cross_entropy(LOGITS[:1], torch.zeros(1, 3)).tolist() == [0.0]


def test_am_softmax_against_the_paper():
    """C2: the margin is missing, unscaled, or taken from the wrong class."""
    cosine, scale, margin, own = np.array([0.3, 0.8, -0.2]), 30.0, 0.35, 1
    top = np.exp(scale * (cosine[own] - margin))
    rest = sum(np.exp(scale * cosine[k]) for k in range(3) if k != own)
    wanted = -np.log(top / (top + rest))
    logits = torch.tensor(scale * cosine)[None]
    targets = torch.nn.functional.one_hot(torch.tensor([own]), 3)
    got = am_softmax(logits, targets.double(), scale * margin)
    assert got.item() == pytest.approx(wanted)
    stage = Stage(loss="am-softmax", margin=margin)
    whole = make_loss(stage, [""] * 3, COUNTS, scale=scale)(logits, targets.float())
    assert whole.item() == pytest.approx(wanted, rel=1e-4)


def test_level_weights_multiply_each_levels_loss():
    """B1: levels are weighted otherwise than the recipe says."""
    levels = ("family", "family", "species")
    weighted = loss_of(
        Stage(loss="bce", group_weights={"family": 0.2, "species": 3.0}), groups=levels
    )
    each = plain_bce()
    wanted = 0.2 * each[:, :2].sum(1) + 3.0 * each[:, 2]
    np.testing.assert_allclose(weighted, wanted, rtol=1e-5)


def test_softmax_levels_are_summed_by_their_weights():
    """B1: with a softmax a level, classes compete across levels or weights are lost."""
    levels = ("family", "family", "species")
    got = loss_of(Stage(loss="cross-entropy", group_weights={"species": 3.0}), groups=levels)
    wanted = cross_entropy(LOGITS[:, :2], TARGETS[:, :2]) + 3 * cross_entropy(
        LOGITS[:, 2:], TARGETS[:, 2:]
    )
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-5)


def test_a_stage_of_tags_ignores_the_other_groups():
    """A19: a stage for tags alone still learns cultures."""
    groups = ("culture", "tag", "tag")
    got = loss_of(Stage(loss="bce", groups=("tag",)), groups=groups)
    np.testing.assert_allclose(got, plain_bce()[:, 1:].sum(1), rtol=1e-5)
    soft = loss_of(Stage(loss="soft-fbeta", groups=("tag",)), groups=groups)
    wanted = soft_fbeta(LOGITS[:, 1:], TARGETS[:, 1:])
    np.testing.assert_allclose(soft, wanted.numpy(), rtol=1e-5)


def test_an_unknown_group_is_refused_by_name():
    """A misspelt class group trains on nothing."""
    with pytest.raises(ValueError, match="names class group 'tags'; the labels have 'tag'"):
        group_weights(Stage(name="last", groups=("tags",)), ["tag"])


def test_softmax_probabilities_sum_to_one_in_each_group():
    """C2, B1: classes of different levels compete for one sum."""
    probs = to_probabilities(LOGITS, ["a", "b", "a"], softmax=True)
    torch.testing.assert_close(probs[:, 0] + probs[:, 2], torch.ones(2))
    torch.testing.assert_close(probs[:, 1], torch.ones(2))
    torch.testing.assert_close(to_probabilities(LOGITS, [""] * 3, softmax=False), LOGITS.sigmoid())
