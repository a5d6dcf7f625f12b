"""Several processes do what one does."""

from dataclasses import replace

import numpy as np
import pytest

from cnn_extract.train.run import train
from features.store import FeatureStore
from tests.cnn_extract.train.conftest import (
    RECIPE,
    probs_of,
    train_checkpoint,
)


def run_ranks(arguments, n_ranks, port):
    """Run the command in several processes, as `accelerate launch` does."""
    import os
    import subprocess
    import sys

    common = {
        "WORLD_SIZE": str(n_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    running = []
    for rank in range(n_ranks):
        env = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return [(process.communicate(timeout=240)[0], process.returncode) for process in running]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_and_predict_as_one(request_of, silent, tmp_path):
    """Processes train on the same images, forget to share gradients, or write each other's rows."""
    # Only the head, without batch statistics: the sum over processes is exact.
    text = RECIPE.replace('train = "all"', 'train = "head"')
    one = request_of(text, n_images=20, n_labelled=16, settings=("input.hflip=0.0",))
    train(one, silent)
    out = tmp_path / "two"
    arguments = [
        "-m", "cnn_extract", "train", str(one.images), "--labels", str(one.labels),
        "--recipe", one.recipe,
        "--out", str(out), "--model", one.model, "--size", "32", "--workers", "0",
        "--set", "input.hflip=0.0", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    done = run_ranks(arguments, 2, free_port())
    assert [code for _, code in done] == [0, 0], done[0][0] + done[1][0]
    two = replace(one, out=out)
    np.testing.assert_allclose(probs_of(one), probs_of(two), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_extract_as_one(request_of, silent, tmp_path):
    """Processes write each other's chunks, or the second one's store is lost."""
    from cnn_extract.run import Request, run

    made = request_of(n_images=20, n_labelled=18)
    model = f"test_resnet={train_checkpoint(tmp_path)}"
    alone = Request(
        images=made.images,
        labels=made.labels,
        models=[model],
        out=tmp_path / "one",
        heads=("linear",),
        folds=2,
        size=32,
        batch_size=4,
        workers=0,
        chunk_images=4,
    )
    run(alone, silent)
    both = replace(alone, out=tmp_path / "two")
    code = f"from pathlib import *; from cnn_extract.run import *; run({both!r})"
    arguments = ["-c", code.replace("PosixPath", "Path")]
    done = run_ranks(arguments, 2, free_port())
    assert [code for _, code in done] == [0, 0], done[0][0] + done[1][0]
    one, two = (FeatureStore.open(tmp_path / name) for name in ("one", "two"))
    for name in ("embeddings", "imagenet_logits"):
        a, b = (getattr(store, name)("test_resnet") for store in (one, two))
        np.testing.assert_array_equal(a, b)
    assert two.is_complete("probabilities/test_resnet.linear")
