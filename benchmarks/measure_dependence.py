"""Do labels that depend on each other call for other sets? A shared factor, measured.

    python benchmarks/measure_dependence.py openclipart_oof.npz

Given a standard normal factor z the labels of an image are independent with log-odds
a_c + strength z, a_c such that the calibrated probabilities stay as they are. The sets of highest
expected F2 under this joint distribution come from `joint_fbeta_sets`; strength 0 is the
independent case. All scores are nested: calibrated on the other folds.
"""

import argparse

import numpy as np
from measure_decisions import interval, read
from scipy.special import expit, logit

from stacker.calibration import ProbabilityCalibrator
from stacker.fbeta import fbeta_per_image, joint_fbeta_sets

N_CANDIDATES, N_COUNTS, N_NODES = 32, 48, 9


def calibrated(probs, Y, fold, groups):
    out = np.zeros(probs.shape)
    for f in np.unique(fold):
        train, test = fold != f, fold == f
        calibrator = ProbabilityCalibrator(random_state=0)
        calibrator.fit(probs[train], Y[train], groups=groups[train])
        out[test] = calibrator.transform(probs[test])
    return out.clip(1e-9, 1 - 1e-9)


def given_factor(probs, strength):
    """Weights of the nodes and probabilities at each, which average to `probs` (bisection)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    weights /= weights.sum()
    low, high = logit(probs) - 10 * strength, logit(probs) + 10 * strength
    for _ in range(50):
        a = (low + high) / 2
        mean = sum(w * expit(a + strength * z) for w, z in zip(weights, nodes, strict=True))
        low, high = np.where(mean < probs, a, low), np.where(mean < probs, high, a)
    return weights, [expit(a + strength * z) for z in nodes]


def add_label(counts, p):
    counts[:, 1:] = counts[:, 1:] * (1 - p[:, None]) + counts[:, :-1] * p[:, None]
    counts[:, 0] *= 1 - p


def joint_of(p, top):
    """P(label, count) of the candidates under independence, and P(no label)."""
    n = len(p)
    counts = np.zeros((n, N_COUNTS + 1))
    counts[:, 0] = 1
    for c in range(p.shape[1]):
        add_label(counts, p[:, c])
    x = np.take_along_axis(p, top, axis=1)[:, :, None]
    small = np.minimum(x, 0.5)[..., 0]
    others, joint = np.zeros(top.shape), np.zeros((*top.shape, N_COUNTS))
    for s in range(1, N_COUNTS + 1):  # upwards, for p <= 1/2
        others = (counts[:, [s - 1]] - small * others) / (1 - small)
        joint[:, :, s - 1] = small * others
    others = np.zeros(top.shape)
    likely = np.maximum(x, 0.5)[..., 0]
    for s in range(N_COUNTS, 0, -1):  # downwards above
        others = (counts[:, [s]] - (1 - likely) * others) / likely
        joint[:, :, s - 1] = np.where(x[..., 0] > 0.5, likely * others, joint[:, :, s - 1])
    return joint.clip(0, 1), counts[:, 0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    probs, Y, fold, groups, _ = read(parser.parse_args().data)
    p = calibrated(probs, Y, fold, groups)
    top = np.argsort(-p, axis=1)[:, :N_CANDIDATES]
    n_true = Y.sum(axis=1)
    scores = {}
    print("| strength | log likelihood of the count | F2 samples | over strength 0, 95% |")
    print("|---|---|---|---|")
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        weights, given = given_factor(p, strength)
        joint, none, likelihood = 0.0, 0.0, 0.0
        for w, q in zip(weights, given, strict=True):
            part, empty = joint_of(q, top)
            joint, none = joint + w * part, none + w * empty
            counts = np.zeros((len(q), N_COUNTS + 1))
            counts[:, 0] = 1
            for c in range(q.shape[1]):
                add_label(counts, q[:, c])
            likelihood = likelihood + w * counts[np.arange(len(q)), n_true]
        chosen = joint_fbeta_sets(joint, none)[0]
        sets = np.zeros(p.shape, np.int8)
        np.put_along_axis(sets, top, chosen, axis=1)
        scores[strength] = fbeta_per_image(Y, sets)
        gap = scores[strength] - scores[0.0]
        low, high = interval(gap, groups)
        print(
            f"| {strength} | {np.log(likelihood).mean():.4f} | {scores[strength].mean():.4f} "
            f"| {gap.mean():+.4f} [{low:+.4f}, {high:+.4f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
