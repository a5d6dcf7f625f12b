"""A process of several that is lost during extraction leaves work that a rerun finishes."""

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.store import FeatureStore

ROOT = Path(__file__).parents[2]

# The second process dies as it is about to write its second chunk of embeddings.
RANK = """
import os, signal, sys
from pathlib import Path
from cnn_extract.run import Request, run
from features.store import FeatureStore

write, written = FeatureStore.write_rows, []

def write_or_die(self, name, start, values):
    if name.startswith("embeddings"):
        if os.environ.get("RANK") == "1" and written:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(start)
    return write(self, name, start, values)

FeatureStore.write_rows = write_or_die
folder, out = map(Path, sys.argv[1:])
run(Request(images=folder / "images", labels=folder / "labels.csv", models=["test_resnet=none"],
            out=out, heads=("linear",), folds=2, size=32, batch_size=4, workers=0, chunk_images=4))
"""


def launch(folder, out, n_ranks):
    """Start processes as `accelerate launch` and torchrun do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(n_ranks), "ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(n_ranks)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(out)],
            env=os.environ | common | (rank if n_ranks > 1 else {}),
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        for rank in ranks
    ]


@pytest.mark.slow
def test_a_rerun_finishes_what_a_lost_rank_left(tmp_path):
    """Chunks of the lost process stay empty, or are taken for written."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = ["image_id,labels"]
    for k in range(24):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"i{k:02}.png")
        lines.append(f"i{k:02},tag::{'ab'[k % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    (alone,) = launch(tmp_path, tmp_path / "one", 1)
    assert alone.wait(timeout=240) == 0
    first, second = launch(tmp_path, tmp_path / "two", 2)
    assert second.wait(timeout=240) == -signal.SIGKILL
    try:
        assert first.wait(timeout=60) != 0
    except subprocess.TimeoutExpired:
        # It waits for the lost one; a launcher ends it.
        first.kill()
        first.wait()
    begun = FeatureStore.open(tmp_path / "two")
    assert 0 < begun.written("embeddings/test_resnet").sum() < 24
    (again,) = launch(tmp_path, tmp_path / "two", 1)
    assert again.wait(timeout=240) == 0
    one, two = (FeatureStore.open(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_array_equal(one.embeddings("test_resnet"), two.embeddings("test_resnet"))
    assert two.is_complete("probabilities/test_resnet.linear")
