"""What new images' probabilities say about each class's frequency, for `stacker.adapt`."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from stacker._calibration_maps import bin_pairs, log_odds
from stacker._inputs import Matrix

__all__ = ["LikelihoodEvidence", "MomentEvidence"]

Floats = NDArray[np.float64]
# No class is believed to be more than e^5 = 148 times as frequent (in odds), or as rare.
MOST_SHIFT = 5.0
BISECTIONS = 40
# Precisions of the classes' shifts around the common one that "auto" chooses from.
PRECISIONS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


class LikelihoodEvidence:
    """What the new images' probabilities say about each class's shift d in log-odds.

    With source prior s and target prior t, logit t = logit s + d, an image of probability p
    has the likelihood p t / s + (1 - p) (1 - t) / (1 - s). `spread` divides the log-likelihood:
    images of one group, and classes that look otherwise in it, make fewer than n observations.
    """

    def __init__(self, target: Matrix, prior: Floats, spread: float = 1.0) -> None:
        nothing = sp.csr_array(target.shape, dtype=np.int8)
        counts = bin_pairs(target, nothing, np.zeros(target.shape[0], np.intp), 1)
        self.odds, self.count = counts.centre[None, :], counts.total[0].astype(np.float64) / spread
        self.prior_odds = log_odds(prior)
        # Probabilities of exactly 0 are in no bin: negatives for sure.
        self.zeros = target.shape[0] / spread - self.count.sum(axis=1)

    def slope(self, shift: Floats) -> Floats:
        """Give the derivative of each class's log-likelihood: positives expected minus believed."""
        after = expit(self.odds + shift[:, None])
        n_images = self.count.sum(axis=1) + self.zeros
        return (self.count * after).sum(axis=1) - n_images * expit(self.prior_odds + shift)

    def log_likelihood(self, shift: Floats) -> Floats:
        """Log-likelihood of each class's shift, up to a constant."""
        p, d = self.odds, shift[:, None]
        # log((1 - t) / (1 - s)) = log_expit(-l - d) - log_expit(-l), l = logit s.
        of_negative = log_expit(-self.prior_odds - shift) - log_expit(-self.prior_odds)
        mixed = np.logaddexp(log_expit(p) + d, log_expit(-p))
        n_images = self.count.sum(axis=1) + self.zeros
        return (self.count * mixed).sum(axis=1) + n_images * of_negative

    def information(self, shift: Floats) -> Floats:
        """Observed information of each class's shift, by central differences."""
        step = 0.05
        slopes = self.slope(shift - step) - self.slope(shift + step)
        return np.maximum(slopes / (2 * step), 0.0)

    def shifts(self, common: float, precision: float) -> Floats:
        """Most probable shift of each class, normal around the common one."""
        low = np.full(len(self.prior_odds), -MOST_SHIFT)
        high = np.full(len(self.prior_odds), MOST_SHIFT)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            rising = self.slope(middle) - precision * (middle - common) > 0
            low, high = np.where(rising, middle, low), np.where(rising, high, middle)
        return (low + high) / 2

    def common(self) -> float:
        """Find the one shift of all classes."""
        low, high = -MOST_SHIFT, MOST_SHIFT
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            rising = self.slope(np.full(len(self.prior_odds), middle)).sum() > 0
            low, high = (middle, high) if rising else (low, middle)
        return (low + high) / 2

    def best_precision(self, common: float) -> float:
        """Precision of the highest marginal likelihood (Laplace's approximation)."""
        scores = []
        for precision in PRECISIONS:
            shift = self.shifts(common, precision)
            gain = self.log_likelihood(shift) - precision / 2 * (shift - common) ** 2
            spread = np.log(precision / (precision + self.information(shift))) / 2
            scores.append(float((gain + spread).sum()))
        return PRECISIONS[int(np.argmax(scores))]


class MomentEvidence(LikelihoodEvidence):
    """The same from mean probabilities alone: t solves mean p = t m1 + (1 - t) m0."""

    def __init__(self, source: Matrix, target: Matrix, prior: Floats, spread: float = 1.0) -> None:
        self.prior_odds = log_odds(prior)
        n = target.shape[0]
        # Calibrated: the share p of an image is positive, so m1 = E[p^2] / E[p].
        mean, square = (_column_means(source, power) for power in (1, 2))
        on_positive = square / np.maximum(mean, 1e-12)
        on_negative = (mean - square) / np.maximum(1 - mean, 1e-12)
        apart = np.maximum(on_positive - on_negative, 1e-6)
        seen, seen_square = (_column_means(target, power) for power in (1, 2))
        rate = (seen - on_negative) / apart
        low, high = expit(self.prior_odds - MOST_SHIFT), expit(self.prior_odds + MOST_SHIFT)
        self.rate = np.clip(rate, low, high)
        variance = np.maximum(seen_square - seen**2, 1e-12) / n / apart**2 * spread
        self.known = (self.rate * (1 - self.rate)) ** 2 / variance
        self.own = log_odds(self.rate) - self.prior_odds

    def shifts(self, common: float, precision: float) -> Floats:
        """Shift of each class, weighted with the common one by what is known of it."""
        weight = self.known / np.maximum(self.known + precision, 1e-300)
        return weight * self.own + (1 - weight) * common

    def common(self) -> float:
        """Find the shift at which the expected number of labels comes out."""
        low, high = -MOST_SHIFT, MOST_SHIFT
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = expit(self.prior_odds + middle).sum() < self.rate.sum()
            low, high = (middle, high) if below else (low, middle)
        return (low + high) / 2

    def information(self, shift: Floats) -> Floats:
        """Inverse variance of each class's estimate."""
        return self.known

    def best_precision(self, common: float) -> float:
        """Precision of the highest marginal likelihood of normal estimates."""
        gap = (self.own - common) ** 2
        scores = []
        for precision in PRECISIONS:
            variance = 1 / precision + 1 / np.maximum(self.known, 1e-3)
            scores.append(float(-(gap / variance + np.log(variance)).sum()))
        return PRECISIONS[int(np.argmax(scores))]


def _column_means(probs: Matrix, power: int) -> Floats:
    values = probs.power(power) if sp.issparse(probs) else probs.astype(np.float64) ** power
    return np.asarray(values.mean(axis=0), dtype=np.float64).ravel()
