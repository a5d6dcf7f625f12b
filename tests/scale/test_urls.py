"""A URL serves as store, from extraction to prediction: memory:// and a real S3 server."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from features import FeatureStore
from features._build import Request, build
from features.parquet import read_pairs
from stacker import PairStacker
from stacker.cli import app
from stacker.persistence import write_folder

ROOT = Path(__file__).parents[2]
BUCKET = "pairstack"


@pytest.fixture(scope="module")
def s3():
    """Environment of a local S3 server with an empty bucket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    named = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in named.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield named
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request):
    """Place of a new store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/{os.urandom(4).hex()}"
    return f"memory://{os.urandom(4).hex()}"


def from_slice(place, stack, labels, fold):
    """Store of a part of the slice."""
    return FeatureStore.from_arrays(
        place,
        image_ids=stack.image_ids,
        classes=stack.classes,
        probabilities={m: stack.probabilities[m] for m in stack.models[:2]},
        labels=labels,
        fold=fold,
        embeddings={"lite0": stack.embeddings["lite0"][:, :16]},
        chunk_images=64,
    )


def test_a_store_at_a_url_gives_the_rows_and_model_of_a_local_one(
    url, tmp_path, monkeypatch, slice_stack, slice_labels, slice_fold
):
    """Reading, featurising, fitting or predicting works on local paths only."""
    given = slice_stack[:80], slice_labels[:80], slice_fold[:80]
    here = from_slice(tmp_path / "store", *given)
    there = from_slice(f"{url}/store", *given)
    assert isinstance(there.path, str)
    blocks = ("probabilities", "class_prior")
    common = {"blocks": blocks, "rows_per_part": 2000, "n_jobs": 1}
    build(Request(str(here.path), tmp_path / "pairs", **common))
    build(Request(there.path, f"{url}/pairs", **common))
    for one, other in zip(read_pairs(tmp_path / "pairs"), read_pairs(f"{url}/pairs"), strict=True):
        assert one.equals(other)
    monkeypatch.setattr("stacker.estimator.MOST_ROUNDS", 10)
    model = PairStacker("xgboost", blocks=blocks, cv="store", random_state=0, n_jobs=1)
    expected = model.fit(here).predict_proba(here)
    found = model.fit(FeatureStore.open(there.path)).predict_proba(there)
    np.testing.assert_array_equal(found, expected)


def test_a_killed_writer_leaves_no_store_and_no_pair_folder(
    url, monkeypatch, slice_stack, slice_labels, slice_fold
):
    """A URL has no rename: half of a store passes for a whole one."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    given = slice_stack[:100], slice_labels[:100], slice_fold[:100]
    with monkeypatch.context() as patch:
        patch.setattr("features._layout.seal", stop)
        with pytest.raises(KeyboardInterrupt):
            from_slice(f"{url}/store", *given)
    with pytest.raises(ValueError, match="is no store"):
        FeatureStore.open(f"{url}/store")


def test_rows_written_to_a_url_resume(url, slice_stack):
    """What is not marked as written is taken for data."""
    stack = slice_stack[:130]
    store = FeatureStore.create(
        f"{url}/store", image_ids=stack.image_ids, classes=stack.classes, chunk_images=64
    )
    store.require_array("embeddings/x", (4,), np.float32, ("image", "dim"))
    store.write_rows("embeddings/x", 64, np.ones((64, 4), np.float32))
    again = FeatureStore.open(f"{url}/store", "r+")
    assert again.written("embeddings/x").nonzero()[0].tolist() == list(range(64, 128))
    assert np.isnan(again.embeddings("x")[:64]).all()


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "store", "--out", "s3://bucket/model"],
        ["predict", "model", "store", "--out", "s3://bucket/p.csv", "--force"],
        ["predict", "model", "store", "--out", "s3://bucket/parts", "--dask", "tcp://x:1"],
    ],
    ids=["model", "predictions", "parts"],
)
def test_what_cannot_be_at_a_url_is_refused(command, tmp_path, monkeypatch):
    """A model or predictions land in a local folder named "s3:", after hours of work."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "is a URL; only stores and pair folders" in " ".join(done.output.split())
    with pytest.raises(ValueError, match="is a URL"):
        write_folder("s3://bucket/model", {}, {})  # what PairStacker.save calls
    assert not list(tmp_path.iterdir())


def test_extraction_writes_to_s3(s3, tmp_path):
    """`cnn-extract run` takes a URL for a folder name, or cannot go on with it."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines = ["image_id,labels"]
    for k in range(12):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"i{k}.png")
        lines.append(f"i{k},tag::{'ab'[k % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "cnn_extract", "run", str(tmp_path / "images")]
    command += ["--labels", str(tmp_path / "labels.csv"), "--model", "test_resnet=none"]
    command += ["--heads", "linear", "--folds", "2", "--batch-size", "4", "--workers", "0"]
    command += ["--size", "32", "--out", f"s3://{BUCKET}/extracted", "--quiet"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    store = FeatureStore.open(f"s3://{BUCKET}/extracted")
    assert store.n_images == 12
    assert store.is_complete("probabilities/test_resnet.linear")
    assert not (ROOT / "s3:").exists()
