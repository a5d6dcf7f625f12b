"""Rounds and shrinkage chosen on held-out folds, with images that count more or less."""

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit

from stacker import PairStacker
from stacker._rounds import choose_shrinkage, choose_stages
from stacker.boosters import FoldFit, Rows


def make_rows(rng, n_images=60, n_classes=4, weight=None) -> Rows:
    """Rows of all classes of every image, in three folds, without features."""
    image = np.repeat(np.arange(n_images, dtype=np.int32), n_classes)
    cls = np.tile(np.arange(n_classes, dtype=np.int32), n_images)
    label = (rng.random(len(image)) < 0.3).astype(np.float32)
    base = np.zeros(len(image), dtype=np.float32)
    fold = np.arange(n_images) % 3
    given = None if weight is None else weight[image]
    return Rows(None, None, fold, fold, image, cls, label, base, base, given)


def test_images_that_weigh_nothing_have_no_say_in_the_shrinkage(rng):
    """A correction that only they speak against is applied as if they were not there."""
    weight = np.where(np.arange(60) < 30, 1, 0).astype(np.float32)
    rows = make_rows(rng, weight=weight)
    rows.label = np.where(rows.image < 30, rows.label, 1 - rows.label)
    raw = np.where(rows.label == 1, 3, -3).astype(np.float32) * np.where(rows.image < 30, 1, -9)
    few = make_rows(np.random.default_rng(0), n_images=30)
    wanted = choose_shrinkage(few, np.where(few.label == 1, 3, -3), np.ones(120, bool))
    assert choose_shrinkage(rows, raw.astype(np.float32), np.ones(240, bool)) == wanted == 1


def test_folds_choose_rounds_by_what_their_images_weigh(rng):
    """A fold of little weight is outvoted, however many images it has."""
    weight = np.where(np.arange(60) % 3 == 0, 1, 0.01).astype(np.float32)
    rows = make_rows(rng, weight=weight)
    up, down = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    raw = np.zeros((3, 80), dtype=np.float32)
    fits = {"lightgbm": {0: FoldFit(down, raw), 1: FoldFit(up, raw), 2: FoldFit(up, raw)}}
    assert choose_stages(fits, rows).rounds == {"lightgbm": 20}


@pytest.mark.parametrize("booster", ["lightgbm", "xgboost"])
@pytest.mark.parametrize("n_folds", [2, 3])
def test_a_fold_that_weighs_nothing_is_no_error(booster, n_folds, rng):
    """Images may be given a weight of 0; where a fold had no others, fit divided by zero."""
    Y = (rng.random((60, 3)) < 0.4).astype(np.int8)
    X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    fold = np.arange(60) % n_folds
    model = PairStacker(booster, cv=PredefinedSplit(fold), blocks=("logits",), n_jobs=1)
    model.fit(X, Y, sample_weight=(fold != 0).astype(float))
    assert np.isfinite(model.oof_proba_).all()
    with pytest.raises(ValueError, match="one an image, and one above 0; however: shape"):
        model.fit(X, Y, sample_weight=np.zeros(60))
