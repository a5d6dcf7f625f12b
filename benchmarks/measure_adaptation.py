"""What adaptation is worth on openclipart with simulated shifts: the figures of docs/adapt.md.

    python benchmarks/measure_adaptation.py openclipart_oof.npz

Half of the images (whole split groups) are the source. Target images are drawn from the other
half by a weight that makes a random half of the classes rarer and the others more frequent. The
labelled ones among them come of a third of its split groups, those that are scored of the others.
"""

import argparse
import itertools

import numpy as np
from nested_openclipart import read
from scipy.sparse import csr_array

from stacker import FBetaDecision, fbeta_score
from stacker.adapt import PriorShift, TargetAdapter
from stacker.blend import LogisticBlend, cross_fit
from stacker.evaluation import log_loss


def draw(n: int, among: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of n images among some, drawn with replacement by weight."""
    places = np.flatnonzero(among)
    return rng.choice(places, n, p=weight[places] / weight[places].sum())


def some_groups(groups: np.ndarray, part: int, rng: np.random.Generator) -> np.ndarray:
    """Whether an image is of one in so many split groups, drawn at random."""
    names = np.unique(groups)
    return np.isin(groups, rng.choice(names, len(names) // part, replace=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--labelled", type=int, default=300)
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    Y = labels.toarray()
    found: dict[float, dict[str, list[tuple[float, float]]]] = {}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        in_source = some_groups(groups, 2, rng)
        source = np.flatnonzero(in_source)
        # An image drawn twice, or a near-duplicate, must not be labelled here and scored there.
        labelled = np.zeros(len(Y), bool)
        labelled[~in_source] = some_groups(groups[~in_source], 3, rng)
        # The blend never sees a label of the other half.
        proba = LogisticBlend().fit(stack[source], labels[source]).predict_proba(stack)
        proba[source] = cross_fit(LogisticBlend(), stack[source], labels[source], fold[source])
        rule = FBetaDecision(strategy="expected", random_state=0)
        rule.fit(proba[source], csr_array(Y[source]))
        direction = rng.choice([-1.0, 1.0], Y.shape[1])
        for strength in (0.0, 0.5, 1.0):
            weight = np.exp(np.clip(Y @ (strength * direction), -4, 4))
            known = draw(options.labelled, labelled, weight, rng)
            new = draw(int((~in_source).sum()), ~in_source & ~labelled, weight, rng)
            moved = {"as is": (proba[new], rule)}
            for method, trust in itertools.product(("em", "moments"), ("auto", 1)):
                shift = PriorShift(method, trust=trust).fit(
                    proba[source], Y[source], proba[new], groups[source]
                )
                own = FBetaDecision(strategy="expected", random_state=0)
                own.fit(shift.calibrator_.transform(proba[source]), csr_array(Y[source]))
                moved[f"{method}, trust {trust}"] = (shift.transform(proba[new]), own)
            adapter = TargetAdapter(strategy="expected", random_state=0)
            adapter.fit(proba[source], Y[source], proba[known], Y[known], groups=groups[known])
            moved["adapter"] = (adapter.predict_proba(proba[new]), adapter.decision_)
            for name, (p, decide) in moved.items():
                f2 = fbeta_score(Y[new], decide.predict(p))
                values = found.setdefault(strength, {}).setdefault(name, [])
                values.append((f2, log_loss(Y[new], p)))
    for strength, rows in found.items():
        for name, values in rows.items():
            f2, loss = np.mean(values, axis=0)
            print(f"strength {strength}: {name:20s} F2 {f2:.4f}  log loss {loss:.5f}", flush=True)


if __name__ == "__main__":
    main()
