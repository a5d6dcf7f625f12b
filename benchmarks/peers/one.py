"""One peer on one outer fold, on one thread of a process of its own; prints its costs as JSON.

A peer's threshold is the best one on a held-out fold of the training images, and the peer is then
fitted again on all of them; both fits count as its time. A peer with out-of-fold probabilities of
its own is fitted once. Its probabilities also go through pairstack's decision rule, fitted on what
the threshold was, to tell models from decisions.
"""

import argparse
import json
import resource
import warnings

import numpy as np
from data import Part, read
from measure import peak_rss
from methods import PEERS, Method

from stacker import FBetaDecision, PairStacker

GRID = np.linspace(0.01, 0.99, 99)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def best_threshold(proba: np.ndarray, labels: np.ndarray) -> float:
    """Find the threshold of the grid with the highest mean F2."""
    true = labels.sum(axis=1)

    def f2(threshold: float) -> float:
        sets = proba >= threshold
        hits = (sets & (labels > 0)).sum(axis=1)
        below = sets.sum(axis=1) + 4 * true
        return float(np.mean(np.where(below > 0, 5 * hits / np.maximum(below, 1), 1)))

    return float(max(GRID, key=f2))


def predict(method: Method, train: Part, new: Part) -> list[np.ndarray]:
    """Give what a method does, with 0 for classes without a positive, which peers refuse."""
    known = np.flatnonzero(train.labels.any(axis=0))
    given = method(train.only(known), new.only(known))
    found = []
    for values in given if isinstance(given, tuple) else (given,):
        proba = np.zeros((len(values), new.labels.shape[1]))
        proba[:, known] = np.clip(values, 0, 1)
        found.append(proba)
    return found


def run_peer(method: Method, train: Part, new: Part, held: int) -> dict[str, np.ndarray]:
    """Probabilities and both kinds of label sets of the new images."""
    found, *out_of_fold = predict(method, train, new)
    known, proba = train, out_of_fold[0] if out_of_fold else None
    if proba is None:
        inside = train.fold == held
        known = train[inside]
        proba = predict(method, train[~inside], known)[0]
    rule = FBetaDecision(random_state=0).fit(proba, known.labels, known.groups)
    sets = (found >= best_threshold(proba, known.labels)).astype(np.int8)
    return {"proba": found, "sets": sets, "rule": rule.predict(found)}


def pairstack(train: Part, new: Part) -> dict[str, np.ndarray]:
    model = PairStacker(n_jobs=1, random_state=0)
    model.fit(train.stack, train.labels, groups=train.groups)
    proba, sets = model.predict_proba(new.stack), model.predict(new.stack)
    return {"proba": proba, "sets": sets, "rule": sets}


# pairstack as it is, and given no more than its peers are.
OURS = {"pairstack": lambda part: part, "pairstack_bare": Part.bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a file, 'embedded', or a number of synthetic images")
    parser.add_argument("peer", choices=[*PEERS, *OURS])
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--frequent", action="store_true")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = read(options.data)
    data = data.frequent() if options.frequent else data
    inside = data.fold == options.fold
    train, new = data[~inside], data[inside]
    before, start = peak_rss(), cpu_seconds()
    if options.peer in OURS:
        given = OURS[options.peer]
        found = pairstack(given(train), given(new))
    else:
        held = (options.fold + 1) % (int(data.fold.max()) + 1)
        found = run_peer(PEERS[options.peer].method, train, new, held)
    seconds = cpu_seconds() - start
    np.savez(options.out, labels=new.labels, groups=new.groups, **found)
    print(json.dumps({"seconds": seconds, "peak": peak_rss(), "data": before}))


if __name__ == "__main__":
    main()
