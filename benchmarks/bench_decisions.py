"""Speed of decisions against plain numpy and scikit-learn work on the same arrays, in one run.

    python benchmarks/bench_decisions.py            # full sizes: about 3 GB, a few minutes
    python benchmarks/bench_decisions.py --small    # a tenth of the images

Every line gives seconds, a rate, and the ratio to a yardstick timed beside it; ratios are what to
compare between machines. The best of several repeats counts.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numba
import numpy as np
import scipy.sparse as sp
from sklearn.metrics import fbeta_score as sklearn_fbeta

from stacker import FBetaDecision, expected_fbeta_sets, fbeta_score


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


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


def bench_sets(n_images: int) -> None:
    print("expected_fbeta_sets")
    for n_classes in (1103, 3474):
        n = n_images if n_classes == 1103 else n_images // 4
        probs = simulate(n, n_classes)
        expected_fbeta_sets(probs[:10])
        cut = n_classes - 64
        partition = best_of(lambda p=probs, c=cut: np.partition(p, c, axis=1))
        seconds = best_of(lambda p=probs: expected_fbeta_sets(p))
        print(
            f"  {n:,} x {n_classes:,} dense: {seconds:.3f} s, {n / seconds:,.0f} images/s, "
            f"{seconds / partition:.2f} x np.partition to the top 64 ({partition:.3f} s)"
        )
    sparse = keep_top(simulate(n_images // 20, 32_000), 100)
    expected_fbeta_sets(sparse[:10])
    seconds = best_of(lambda: expected_fbeta_sets(sparse))
    n = sparse.shape[0]
    print(f"  {n:,} x 32,000 sparse, 100 a row: {seconds:.3f} s, {n / seconds:,.0f} images/s")


def bench_thresholds(n_images: int) -> None:
    probs = simulate(n_images, 1103)
    labels = draw_labels(probs)
    groups = np.where(np.arange(1103) < 398, "culture", "tag")
    print(f"threshold searches, {n_images:,} x 1,103")
    flat = probs.ravel()
    sort = best_of(lambda: np.sort(flat), repeats=2)
    print(f"  np.sort of all scores: {sort:.2f} s")
    for average in ("samples", "macro", "micro"):
        for strategy in ("global", "max_ratio", "group", "class"):
            decision = FBetaDecision(average=average, strategy=strategy, class_groups=groups)
            decision.fit(probs[:50], labels[:50])
            seconds = best_of(lambda d=decision: d.fit(probs, labels), repeats=1)
            print(f"  {strategy}, {average}: {seconds:.2f} s, {seconds / sort:.2f} x np.sort")


def bench_auto() -> None:
    probs = simulate(4200, 488, 6.5)
    labels = draw_labels(probs)
    decision = FBetaDecision(random_state=0, class_groups=np.arange(488) % 3)
    decision.fit(probs, labels)
    seconds = best_of(lambda: decision.fit(probs, labels), repeats=2)
    print(f"auto, 4,200 x 488, 5 folds, 5 rules: {seconds:.2f} s")


def bench_metric(n_images: int) -> None:
    truth, pred = (
        sp.random_array((n_images, 1000), density=0.004, format="csr", rng=seed, dtype=np.float32)
        for seed in (1, 2)
    )
    for matrix in (truth, pred):
        matrix.data[:] = 1
    truth, pred = truth.astype(np.int8), pred.astype(np.int8)
    print(f"fbeta_score, {n_images:,} x 1,000 sparse, 4 labels an image")
    warnings.simplefilter("ignore")
    for average in ("samples", "macro", "micro"):
        fbeta_score(truth, pred, average=average)
        ours = best_of(lambda a=average: fbeta_score(truth, pred, average=a), 20)
        theirs = best_of(lambda a=average: sklearn_fbeta(truth, pred, beta=2, average=a), 5)
        print(f"  {average}: {1e3 * ours:.2f} ms, scikit-learn {theirs / ours:.0f} x as long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the images")
    scale = 10 if parser.parse_args().small else 1
    print(f"{numba.get_num_threads()} threads, numpy {np.__version__}, numba {numba.__version__}")
    bench_metric(100_000 // scale)
    bench_sets(40_000 // scale)
    bench_auto()
    bench_thresholds(109_237 // scale)


if __name__ == "__main__":
    main()
