"""Long work: memory and open files stay where they are, hour after hour (``make soak``)."""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from features.schema import Stack
from stacker import PairStacker

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

N_IMAGES = int(os.environ.get("SOAK_IMAGES", "200000"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "1200"))
N_CLASSES, N_FIT, AT_ONCE = 30, 2000, 5000
ROOT = Path(__file__).parents[2]


def resident():
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files():
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


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


def soak(n_images, done, held=resident):
    """Do the same work again and again until `done(rounds)`; bytes held after each round."""
    first = work(0, n_images)
    gc.collect()
    sizes, files = [held()], open_files()
    while not done(len(sizes) - 1):
        assert work(0, n_images) == first
        gc.collect()
        sizes.append(held())
        assert open_files() <= files
    return sizes


# In a process of its own: what other tests left running opens files, too.
SHORT = """
import tracemalloc
from tests.reliability.test_soak import soak
tracemalloc.start()
print(*soak(10_000, lambda rounds: rounds == 1, lambda: tracemalloc.get_traced_memory()[0]))
"""


def test_a_round_leaves_neither_its_images_nor_its_files_behind():
    """The short form counts what Python and numpy still hold: resident memory swings by more.

    Half of a round's probabilities is the bound; `make soak` watches the whole process.
    """
    done = subprocess.run(
        [sys.executable, "-c", SHORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert second - first < 10_000 * N_CLASSES * np.dtype(np.float32).itemsize


@pytest.mark.slow
def test_memory_and_files_stay_where_they_are():
    """A leak ends a night's run in the morning."""
    until = time.monotonic() + SECONDS
    sizes = soak(N_IMAGES, lambda _: time.monotonic() > until)
    growth = sizes[-1] / sizes[0] - 1
    print(
        f"{len(sizes) - 1} rounds of {N_IMAGES:,} images in {SECONDS:.0f} s: memory {growth:+.1%}"
    )
    assert growth < 0.05
