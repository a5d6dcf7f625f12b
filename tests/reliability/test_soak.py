"""Long work: memory and open files stay where they are, hour after hour (``make soak``)."""

import gc
import os
import time
from pathlib import Path

import numpy as np
import pytest

from features.schema import Stack
from stacker import PairStacker

N_IMAGES = int(os.environ.get("SOAK_IMAGES", "200000"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "1200"))
N_CLASSES, N_FIT, AT_ONCE = 30, 2000, 5000


def resident():
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def stream(n_images, seed):
    """Give synthetic images, some at a time: probabilities of two models and labels."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_images, AT_ONCE):
        n = min(AT_ONCE, n_images - start)
        level = rng.normal(-2, 1, (n, N_CLASSES)).astype(np.float32)
        labels = (rng.random((n, N_CLASSES)) < 1 / (1 + np.exp(-level))).astype(np.int8)
        noisy = [level + rng.normal(0, 0.5, level.shape) for _ in range(2)]
        yield (
            {
                k: (1 / (1 + np.exp(-x))).astype(np.float32)
                for k, x in zip("ab", noisy, strict=True)
            },
            labels,
        )


def work(seed, n_images):
    """Fit on the first images, predict all, some at a time; the number of labels predicted."""
    model, n_labels = None, 0
    for X, labels in stream(n_images, seed):
        if model is None:
            some = {name: values[:N_FIT] for name, values in X.items()}
            model = PairStacker(cv=3, random_state=0, n_jobs=1).fit(Stack(some), labels[:N_FIT])
        n_labels += int(model.predict(Stack(X)).sum())
    return n_labels


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_and_files_stay_where_they_are():
    """A leak ends a night's run in the morning."""
    first = work(0, N_IMAGES)
    gc.collect()
    start, files, until = resident(), len(os.listdir("/proc/self/fd")), time.monotonic() + SECONDS  # noqa: PTH208
    rounds = 0
    while time.monotonic() < until:
        assert work(0, N_IMAGES) == first
        rounds += 1
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208
    growth = resident() / start - 1
    print(f"{rounds} rounds of {N_IMAGES:,} images in {SECONDS:.0f} s: memory {growth:+.1%}")
    assert growth < 0.05
