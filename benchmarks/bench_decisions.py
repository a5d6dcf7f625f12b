"""Speed of decisions against plain numpy and scikit-learn work on the same arrays, in one run.

    python benchmarks/bench_decisions.py            # full sizes: about 3 GB, a few minutes
    python benchmarks/bench_decisions.py --small    # a tenth of the images
    python benchmarks/bench_decisions.py --write benchmarks/results/decisions.md

Every line gives a time, a rate or nothing, and the ratio to a yardstick timed beside it; ratios are
what to compare between machines. The best of several repeats counts.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import scipy.sparse as sp
from measure import best_of
from sklearn import __version__ as sklearn_version
from sklearn.metrics import fbeta_score as sklearn_fbeta

from stacker import FBetaDecision, expected_fbeta_sets, fbeta_score


def simulate(n_images: int, n_classes: int, labels_per_image: float = 3.2) -> np.ndarray:
    """Probabilities with Zipf class frequencies and about `labels_per_image` expected labels."""
    rng = np.random.default_rng(0)
    prevalence = 1.0 / np.arange(1, n_classes + 1) ** 0.9
    prevalence = np.clip(prevalence * labels_per_image / prevalence.sum(), 0, 0.5)
    level = (np.log(prevalence / (1 - prevalence)) - 2.0).astype(np.float32)
    probs = np.empty((n_images, n_classes), np.float32)
    for start in range(0, n_images, 4096):
        block = probs[start : start + 4096]
        rng.standard_normal(out=block, dtype=np.float32)
        np.multiply(block, 2.2, out=block)
        block += level
        np.divide(1.0, 1.0 + np.exp(-block), out=block)
    return probs


def draw_labels(probs: np.ndarray) -> sp.csr_array:
    rng = np.random.default_rng(1)
    blocks = [
        sp.csr_array(rng.random(probs[i : i + 4096].shape, dtype=np.float32) < probs[i : i + 4096])
        for i in range(0, len(probs), 4096)
    ]
    return sp.csr_array(sp.vstack(blocks), dtype=np.int8)


def keep_top(probs: np.ndarray, k: int) -> sp.csr_array:
    top = np.argpartition(probs, probs.shape[1] - k, axis=1)[:, -k:]
    rows = np.repeat(np.arange(len(probs)), k)
    values = np.take_along_axis(probs, top, axis=1).ravel()
    return sp.csr_array((values, (rows, top.ravel())), shape=probs.shape)


HEAD = ("what", "size", "time", "against", "ratio", "target")
Line = tuple[str, str, str, str, str, str]


def bench_sets(n_images: int) -> Iterator[Line]:
    """Time the sets of highest expected F2: the whole call, dense and sparse."""
    for n_classes in (1103, 3474):
        n = n_images if n_classes == 1103 else n_images // 4
        probs = simulate(n, n_classes)
        expected_fbeta_sets(probs[:10])
        expected_fbeta_sets(probs)
        partition = best_of(lambda p=probs, c=n_classes - 64: np.partition(p, c, axis=1), 3)
        seconds = best_of(lambda p=probs: expected_fbeta_sets(p), 5)
        yield (
            "expected_fbeta_sets",
            f"{n:,} x {n_classes:,}",
            f"{seconds:.3f} s, {n / seconds:,.0f} images/s",
            f"np.partition to the top 64: {partition:.3f} s",
            f"{seconds / partition:.2f} x as long",
            "100,000 images/s, at most 4 x" if n_classes == 1103 else "",
        )
    for k in (100, 1000):
        sparse = keep_top(simulate(n_images // 20, 32_000), k)
        expected_fbeta_sets(sparse[:10])
        seconds = best_of(lambda p=sparse: expected_fbeta_sets(p), 5)
        n = sparse.shape[0]
        speed = f"{seconds:.4f} s, {n / seconds:,.0f} images/s"
        yield ("expected_fbeta_sets", f"{n:,} x 32,000 sparse, {k} a row", speed, "", "", "")


def bench_thresholds(n_images: int) -> Iterator[Line]:
    """Time the exact search of every rule that has a threshold."""
    probs = simulate(n_images, 1103)
    labels = draw_labels(probs)
    groups = np.where(np.arange(1103) < 398, "culture", "tag")
    flat = probs.ravel()
    sort = best_of(lambda: np.sort(flat), repeats=2)
    for average in ("samples", "macro", "micro"):
        for strategy in ("global", "max_ratio", "group", "class"):
            decision = FBetaDecision(average=average, strategy=strategy, class_groups=groups)
            decision.fit(probs[:50], labels[:50])
            decision.fit(probs[:8000], labels[:8000])  # compiles the threaded kernels
            seconds = best_of(lambda d=decision: d.fit(probs, labels), 1)
            yield (
                f"fit {strategy}, {average}",
                f"{n_images:,} x 1,103",
                f"{seconds:.2f} s",
                f"np.sort of all scores: {sort:.2f} s",
                f"{seconds / sort:.2f} x as long",
                "at most 10 x",
            )


def bench_auto() -> Iterator[Line]:
    """Time the cross-validated choice of a rule, on data of openclipart's size."""
    probs = simulate(4200, 488, 6.5)
    labels = draw_labels(probs)
    decision = FBetaDecision(random_state=0, class_groups=np.arange(488) % 3)
    decision.fit(probs, labels)
    seconds = best_of(lambda: decision.fit(probs, labels), repeats=2)
    yield ("fit auto, samples", "4,200 x 488, 5 folds, 6 rules", f"{seconds:.2f} s", "", "", "")


def bench_metric(n_images: int) -> Iterator[Line]:
    """Score sparse label sets held as int64 (MultiLabelBinarizer's) and as int8 (ours)."""
    warnings.simplefilter("ignore")
    for dtype in (np.int64, np.int8):
        truth, pred = (
            sp.random_array((n_images, 1000), density=0.004, format="csr", rng=seed)
            for seed in (1, 2)
        )
        for matrix in (truth, pred):
            matrix.data[:] = 1
        truth, pred = truth.astype(dtype), pred.astype(dtype)
        for average in ("samples", "macro", "micro"):
            fbeta_score(truth, pred, average=average)
            sets, options = (truth, pred), {"average": average}
            ours = best_of(lambda s=sets, o=options: fbeta_score(*s, **o), 30)
            theirs = best_of(lambda s=sets, o=options: sklearn_fbeta(*s, beta=2, **o), 5)
            yield (
                f"fbeta_score, {average}",
                f"{n_images:,} x 1,000 sparse {np.dtype(dtype)}, 4 labels an image",
                f"{1e3 * ours:.2f} ms",
                f"scikit-learn: {1e3 * theirs:.1f} ms",
                f"{theirs / ours:.0f} x as fast",
                "at least 20 x",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the images")
    parser.add_argument("--only", choices=("metric", "sets", "auto", "thresholds"))
    parser.add_argument("--write", type=Path, help="file for the table, markdown")
    options = parser.parse_args()
    scale = 10 if options.small else 1
    parts = {
        "metric": lambda: bench_metric(100_000 // scale),
        "sets": lambda: bench_sets(40_000 // scale),
        "auto": bench_auto,
        "thresholds": lambda: bench_thresholds(109_237 // scale),
    }
    versions = f"numpy {np.__version__}, numba {numba.__version__}, scikit-learn {sklearn_version}"
    text = ["## Decisions", "", f"{numba.get_num_threads()} threads, {versions}.", ""]
    text += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    print("\n".join(text), flush=True)
    for name, part in parts.items():
        for line in part() if options.only in (None, name) else ():
            text.append(f"| {' | '.join(line)} |")
            print(text[-1], flush=True)
    if options.write:
        arguments = "".join(f" --{k} {v}" for k, v in (("only", options.only),) if v)
        arguments += " --small" if options.small else ""
        text += [
            "",
            f"`python benchmarks/bench_decisions.py{arguments} --write {options.write}`",
            "",
        ]
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text("\n".join(text))


if __name__ == "__main__":
    main()
