"""One peer on one outer fold, on one thread of a process of its own; prints its costs as JSON.

Every peer's threshold is the best one on a held-out fold of the training images, and the peer is
then fitted again on all of them; both fits count as its time. Its probabilities also go through
pairstack's decision rule, fitted on the same held-out fold, to tell models from decisions.
"""

import argparse
import inspect
import io
import json
import resource
import tokenize
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


def code_lines(method: Method) -> int:
    """Lines of code that a user writes: no docstring, comment or empty line."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    skip |= {tokenize.ENDMARKER}
    source = io.StringIO(inspect.getsource(method)).readline
    lines: set[int] = set()
    for token in tokenize.generate_tokens(source):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines) - 1  # without the signature


def best_threshold(proba: np.ndarray, labels: np.ndarray) -> float:
    """Find the threshold of the grid with the highest mean F2."""
    true = labels.sum(axis=1)

    def f2(threshold: float) -> float:
        sets = proba >= threshold
        hits = (sets & (labels > 0)).sum(axis=1)
        below = sets.sum(axis=1) + 4 * true
        return float(np.mean(np.where(below > 0, 5 * hits / np.maximum(below, 1), 1)))

    return float(max(GRID, key=f2))


def predict(method: Method, train: Part, new: Part) -> np.ndarray:
    """Probabilities of the new images; 0 for classes without a positive, which peers refuse."""
    known = np.flatnonzero(train.labels.any(axis=0))
    proba = np.zeros(new.labels.shape)
    proba[:, known] = method(train.only(known), new.only(known))
    return proba


def run_peer(method: Method, train: Part, new: Part, held: int) -> dict[str, np.ndarray]:
    """Probabilities and both kinds of label sets of the new images."""
    inside = train.fold == held
    proba = predict(method, train[~inside], train[inside])
    threshold = best_threshold(proba, train.labels[inside])
    rule = FBetaDecision(random_state=0)
    rule.fit(np.clip(proba, 0, 1), train.labels[inside], train.groups[inside])
    found = predict(method, train, new)
    sets = (found >= threshold).astype(np.int8)
    return {"proba": found, "sets": sets, "rule": rule.predict(np.clip(found, 0, 1))}


def pairstack(train: Part, new: Part) -> dict[str, np.ndarray]:
    model = PairStacker(n_jobs=1, random_state=0)
    model.fit(train.stack, train.labels, groups=train.groups)
    sets = model.predict(new.stack)
    return {"proba": model.predict_proba(new.stack), "sets": sets, "rule": sets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a file, 'embedded', or a number of synthetic images")
    parser.add_argument("peer", choices=[*PEERS, "pairstack"])
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
    if options.peer == "pairstack":
        found, lines = pairstack(train, new), 3
    else:
        method = PEERS[options.peer].method
        held = (options.fold + 1) % (int(data.fold.max()) + 1)
        found, lines = run_peer(method, train, new, held), code_lines(method)
    seconds = cpu_seconds() - start
    np.savez(options.out, labels=new.labels, groups=new.groups, **found)
    print(json.dumps({"seconds": seconds, "peak": peak_rss(), "data": before, "lines": lines}))


if __name__ == "__main__":
    main()
