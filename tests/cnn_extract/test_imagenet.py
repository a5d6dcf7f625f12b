"""ImageNet predictions into a store or a CSV file."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cnn_extract._torchvision import import_timm
from cnn_extract.cli import app
from cnn_extract.imagenet import ImagenetRequest, write_imagenet
from cnn_extract.run import RefusedError, run
from features.store import FeatureStore


@pytest.fixture
def checkpoint(tmp_path):
    """Make a checkpoint of a tiny model with 1,000 classes, as pretrained weights would be."""
    path = tmp_path / "weights.pth"
    torch.save(import_timm().create_model("test_resnet").state_dict(), path)
    return path


def test_logits_join_a_store(make_set, request_for, checkpoint, silent):
    """A14: a store made without the classifier never gets its predictions."""
    folder, labels, _ = make_set(10)
    request = request_for(folder, labels)
    run(request, silent)
    model = f"test_resnet.r160_in1k={checkpoint}"
    asked = ImagenetRequest(folder, model, store=request.out, size=32, workers=0)
    write_imagenet(asked, silent)
    store = FeatureStore.open(request.out)
    logits = store.imagenet_logits("test_resnet.r160_in1k")
    assert logits.shape == (10, 1000)
    assert np.isfinite(logits).all()


def test_the_csv_holds_the_probabilities_of_the_logits(
    make_set, request_for, checkpoint, silent, tmp_path
):
    """A14: the table holds logits, or rows of other images."""
    folder, labels, _ = make_set(9)
    out = tmp_path / "imagenet.csv"
    asked = ImagenetRequest(folder, f"test_resnet={checkpoint}", out=out, size=32, workers=0)
    write_imagenet(asked, silent)
    table = pd.read_csv(out, index_col="image_id")
    assert table.shape == (9, 1000)
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-4)
    request = request_for(folder, labels, models=[f"test_resnet={checkpoint}"], chunk_images=16)
    run(request, silent)
    logits = FeatureStore.open(request.out).imagenet_logits("test_resnet").astype(float)
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(table.to_numpy(), wanted, rtol=1e-2)
    with pytest.raises(RefusedError, match="is there; choose another --out"):
        write_imagenet(asked, silent)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_what_cannot_be_is_refused(make_set, request_for, silent, tmp_path):
    """A random classifier's outputs pass for ImageNet predictions."""
    folder, labels, _ = make_set(6)
    asked = ImagenetRequest(folder, "test_resnet=none", size=32, workers=0)
    with pytest.raises(ValueError, match="either a store with --store or a CSV file with --out"):
        write_imagenet(asked, silent)
    with pytest.raises(ValueError, match="has no classifier of the 1,000 ImageNet classes"):
        write_imagenet(replace(asked, out=tmp_path / "x.csv"), silent)
    request = request_for(folder, labels)
    run(request, silent)
    (folder / "i003.png").unlink()
    with pytest.raises(ValueError, match=r"must hold every image of .*first: 'i003'"):
        write_imagenet(replace(asked, store=request.out), silent)


def test_the_command_writes_a_csv(make_set, checkpoint, tmp_path):
    """The command line does not reach the function."""
    folder, _, _ = make_set(4)
    arguments = [
        "imagenet", str(folder), "--model", f"test_resnet={checkpoint}", "--size", "32",
        "--out", str(tmp_path / "i.csv"), "--workers", "0", "--quiet",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "4 images, 1,000 ImageNet classes" in done.output
