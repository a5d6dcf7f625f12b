"""What adaptation is worth on openclipart with simulated shifts: the figures of docs/adapt.md.

    python benchmarks/measure_adaptation.py openclipart_oof.npz

Half of the images (whole split groups) are the source. Target images are drawn from the other
half by a weight that makes a random half of the classes rarer and the others more frequent.
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


def draw_target(Y: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of images, drawn by exp(sum of their classes' shifts)."""
    shift = strength * rng.choice([-1.0, 1.0], Y.shape[1])
    weight = np.exp(np.clip(Y @ shift, -4, 4))
    return rng.choice(len(Y), len(Y), p=weight / weight.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--labelled", type=int, default=300)
    options = parser.parse_args()
    stack, labels, fold, groups = read(options.path)
    Y = labels.toarray()
    for strength in (0.0, 0.5, 1.0):
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(5):
            rng = np.random.default_rng(seed)
            names = np.unique(groups)
            in_source = np.isin(groups, rng.choice(names, len(names) // 2, replace=False))
            source, rest = np.flatnonzero(in_source), np.flatnonzero(~in_source)
            # The blend never sees a label of the other half.
            proba = LogisticBlend().fit(stack[source], labels[source]).predict_proba(stack)
            own = cross_fit(LogisticBlend(), stack[source], labels[source], fold[source])
            proba[source] = own
            target = rest[draw_target(Y[rest], strength, rng)]
            known, new = target[: options.labelled], target[options.labelled :]
            rule = FBetaDecision(strategy="expected", random_state=0)
            rule.fit(proba[source], csr_array(Y[source]))
            moved = {"as is": (proba[new], rule)}
            for method, trust in itertools.product(("em", "moments"), ("auto", 1)):
                shift = PriorShift(method, trust=trust).fit(
                    proba[source], Y[source], proba[target], groups[source]
                )
                own = FBetaDecision(strategy="expected", random_state=0)
                own.fit(shift.calibrator_.transform(proba[source]), csr_array(Y[source]))
                moved[f"{method}, trust {trust}"] = (shift.transform(proba[new]), own)
            adapter = TargetAdapter(strategy="expected", random_state=0)
            adapter.fit(proba[source], Y[source], proba[known], Y[known])
            moved["adapter"] = (adapter.predict_proba(proba[new]), adapter.decision_)
            for name, (p, decide) in moved.items():
                f2 = fbeta_score(Y[new], decide.predict(p))
                found.setdefault(name, []).append((f2, log_loss(Y[new], p)))
        for name, values in found.items():
            f2, loss = np.mean(values, axis=0)
            print(f"strength {strength}: {name:20s} F2 {f2:.4f}  log loss {loss:.5f}", flush=True)


if __name__ == "__main__":
    main()
