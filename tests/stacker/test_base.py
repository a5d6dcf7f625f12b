"""What the stack starts from and what it falls back to."""

import numpy as np
import pytest

from stacker._base import fit_base
from stacker.blend import BLENDS, cross_fit


def test_auto_falls_back_to_the_better_blend_and_boosts_from_the_logit_mean(
    slice_stack, slice_labels, slice_fold
):
    """Boosting from a blend that read labels learns those labels' folds instead of classes."""
    base, anchor, start = fit_base("auto", slice_stack, slice_labels, slice_fold)
    assert base.start_name == "logit_mean"
    truth = slice_labels.toarray()
    losses = {}
    for name in ("logit_mean", "logistic"):
        proba = cross_fit(BLENDS[name](), slice_stack, slice_labels, slice_fold)
        p = np.clip(proba.astype(np.float64), 1e-7, 1 - 1e-7)
        losses[name] = -np.mean(truth * np.log(p) + (1 - truth) * np.log1p(-p))
        if name == base.name:
            np.testing.assert_array_equal(anchor, proba)
    assert base.name == min(losses, key=losses.get)
    blend = BLENDS["logit_mean"]().fit(slice_stack, slice_labels)
    np.testing.assert_array_equal(start, blend.predict_proba(slice_stack))


@pytest.mark.parametrize("name", ["mean", "logistic", None])
def test_a_named_base_is_both(slice_stack, slice_labels, slice_fold, name):
    """Whoever names a blend boosts from that blend."""
    base, anchor, start = fit_base(name, slice_stack, slice_labels, slice_fold)
    np.testing.assert_array_equal(anchor, start)
    new_anchor, new_start = base.predict(slice_stack[:7])
    assert new_anchor is new_start
    assert base.name == base.start_name == (name or "none")
