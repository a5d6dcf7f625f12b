import numpy as np
import pytest
from matplotlib.figure import Figure

from stacker import FBetaDecision, expected_fbeta_sets, fbeta_score
from stacker.plots import (
    plot_expected_and_achieved,
    plot_label_counts,
    plot_reliability,
    plot_threshold_curve,
)


def heights(container):
    """Means and half widths of drawn error bars."""
    line, _, bars = container.lines
    ends = np.array([segment[:, 1] for segment in bars[0].get_segments()])
    return line.get_ydata(), (ends[:, 1] - ends[:, 0]) / 2


def test_threshold_curve_marks_the_chosen_point_at_its_score(simulate):
    """The marked point is the best of the curve, at the score of that threshold."""
    probs, Y = simulate()
    cut = FBetaDecision(strategy="global").fit(probs, Y).thresholds_[0]
    ax = plot_threshold_curve(probs, Y, cut)
    mean, half = heights(ax.containers[0])
    assert mean[0] == pytest.approx(fbeta_score(Y, probs >= cut))
    assert mean[0] >= ax.lines[0].get_ydata().max() - 1e-6
    assert 0 < half[0] < 0.1


def test_achieved_scores_of_calibrated_probabilities_lie_on_the_line(simulate):
    """What exact sets promise is what labels drawn from the probabilities give."""
    probs, Y = simulate(3000)
    ax = plot_expected_and_achieved(probs, Y, n_bins=5)
    achieved, half = heights(ax.containers[0])
    promised = ax.containers[0].lines[0].get_xdata()
    assert (np.abs(achieved - promised) < 2.5 * half).all()


def test_label_counts_are_shares_of_images(simulate):
    """Both outlines sum to 1, and an image without labels counts."""
    probs, Y = simulate()
    ax = plot_label_counts(Y, expected_fbeta_sets(probs))
    for patch, sets in zip(ax.patches, (Y, expected_fbeta_sets(probs)), strict=True):
        share = patch.get_data().values
        assert share.sum() == pytest.approx(1)
        assert share[0] == np.mean(sets.sum(axis=1) == 0)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["true", "predicted"]


def test_pictures_are_drawn_where_asked(simulate):
    """An axes that is passed is the one that is drawn on and returned."""
    probs, Y = simulate(60)
    axes = Figure().subplots(2, 2).ravel()
    drawn = [
        plot_threshold_curve(probs, Y, 0.3, ax=axes[0]),
        plot_expected_and_achieved(probs, Y, ax=axes[1]),
        plot_label_counts(Y, Y, ax=axes[2]),
        plot_reliability(probs, Y, ax=axes[3]),
    ]
    assert drawn == axes.tolist()
    assert all(ax.has_data() for ax in axes)


def test_pictures_check_their_input(simulate):
    """Labels of other images are refused before anything is drawn."""
    probs, Y = simulate(10)
    with pytest.raises(ValueError, match="same shape"):
        plot_threshold_curve(probs, Y[:5], 0.3)
