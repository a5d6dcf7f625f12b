"""Kept activations of frozen stages lead to what the whole network gives."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cnn_extract._torchvision import import_timm
from cnn_extract.train.augment import View
from cnn_extract.train.checkpoint import read_model
from cnn_extract.train.recipe import ModelRecipe, Recipe, Stage
from cnn_extract.train.run import train
from cnn_extract.train.toml import parse_recipe
from cnn_extract.train.trunk import (
    TrunkFeed,
    check_cut,
    cut_point,
    keep_activations,
    run_trunk,
)
from cnn_extract.train.units import Trainer
from cnn_extract.weights import Weights
from features._seal import seal
from tests.cnn_extract.train.conftest import ArrayFeed, probs_of

TEXT = """
folds = 2
[batch]
size = 8
[input]
crop = "squash"
hflip = {hflip}
cache_trunk = {cache}
[predict]
hflip = false
[[stage]]
train = "head"
# Adam makes whole steps of the rounding in a gradient that is nearly 0.
optimiser = "momentum"
lr = 0.01
[[stage]]
epochs = 2
train = "last-stage"
lr = 0.001
"""


def network_of(name, size=64, **settings):
    from cnn_extract.train.networks import make_network

    recipe = ModelRecipe(name=name, **settings)
    return make_network(recipe, Weights("none"), ["", ""], np.full(2, 0.5), size=size).eval()


@pytest.mark.parametrize("train_", ["head", "last-stage", "last-two-stages"])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "tf_efficientnet_lite0"]
)
def test_trunk_and_tail_make_the_network(name, train_):
    """Training on kept activations trains another function than the network."""
    network = network_of(name)
    recipe = Recipe("x", stage=(Stage(train="head"), Stage(train=train_)))
    cut = cut_point(recipe, network.backbone)
    batch = torch.randn(2, 3, 64, 64)
    check_cut(network, cut, batch)
    kept = run_trunk(network, batch, cut)
    wanted = network(batch)
    network.begin_at(cut)
    torch.testing.assert_close(network(kept), wanted, rtol=1e-4, atol=1e-5)
    network(kept).sum().backward()
    assert network.head[1].weight.grad is not None


def test_a_model_that_does_more_than_call_its_stages_is_refused():
    """A model with position embeddings trains on nonsense."""
    assert import_timm().is_model("test_vit")
    network = network_of("test_vit", size=160)
    with pytest.raises(ValueError, match="cache_trunk does not work with this model"):
        check_cut(network, "blocks.5", torch.randn(2, 3, 160, 160))


def test_the_stage_before_the_last_is_read_from_its_kept_activations():
    """A28: a head that reads two stages reads the kept activations at the wrong place."""
    check_cut(network_of("test_resnet", reads="last-two"), "layer4", torch.randn(2, 3, 64, 64))


def test_training_the_whole_network_is_refused():
    """Activations of stages that change are kept."""
    with pytest.raises(ValueError, match="one trains 'all'"):
        cut_point(Recipe("x"), network_of("test_resnet").backbone)
    with pytest.raises(ValueError, match="an input without chance"):
        parse_recipe("[input]\ncache_trunk = true\nnoise = 3.0\n", name="x")


def test_a_run_with_kept_activations_is_the_run_without(request_of, silent, tmp_path):
    """The cache changes what is learnt, or which images are which."""
    plain = request_of(TEXT.format(hflip=0.0, cache="false"))
    train(plain, silent)
    (tmp_path / "cached.toml").write_text(TEXT.format(hflip=0.0, cache="true"))
    cached = replace(plain, out=tmp_path / "cached", recipe=str(tmp_path / "cached.toml"))
    train(cached, silent)
    for fold in (0, 1):
        one, two = (read_model(r.out / f"fold{fold}")[0] for r in (plain, cached))
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


def test_mirror_images_have_activations_of_their_own():
    """Mirroring is lost, happens in validation, or mirrors the activations instead."""
    kept = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    feed = TrunkFeed(kept, hflip=0.5)
    views = [View(1, seed) for seed in range(200)]
    (drawn,) = feed.batches([views])
    assert set(drawn.ravel().tolist()) == {2.0, 3.0}
    assert 70 < (drawn == 3).sum() < 130
    (plain,) = feed.batches([[View(2), View(0)]])
    assert plain.ravel().tolist() == [4.0, 0.0]


def test_predictions_from_kept_activations_are_those_of_the_images(request_of, silent, monkeypatch):
    """The mirror image's activations are those of another image, or mirrored ones."""
    text = TEXT.format(hflip=0.5, cache="true")
    request = request_of(text.replace("hflip = false", "hflip = true"))
    train(request, silent)
    kept = probs_of(request)
    for path in request.out.rglob("predictions.npy"):
        path.unlink()
    note = request.out / "run.json"
    note.write_text(json.dumps(seal({**json.loads(note.read_text()), "complete": False})))
    monkeypatch.setattr(Trainer, "_kept_will_do", False)
    train(replace(request, name="again"), silent)
    np.testing.assert_allclose(kept, probs_of(request, "again"), rtol=1e-3, atol=1e-5)


def test_a_killed_run_keeps_the_activations_it_has(tmp_path, silent, monkeypatch):
    """Frozen stages run over all images again after a kill, or some images stay empty."""
    from cnn_extract.train import trunk

    monkeypatch.setattr(trunk, "SAVE_EVERY", 4)
    network, images = network_of("test_resnet"), torch.randn(10, 3, 64, 64)
    settings = {"cut": "layer4", "flips": True, "batch_size": 2, "report": silent}
    rows = np.arange(10)
    whole = keep_activations(
        network, ArrayFeed(images, []), rows, 10, tmp_path / "whole.npy", **settings
    )

    class Broken(ArrayFeed):
        def batches(self, batches):
            for k, batch in enumerate(super().batches(batches)):
                if k == 3:
                    raise KeyboardInterrupt
                yield batch

    path = tmp_path / "killed.npy"
    with pytest.raises(KeyboardInterrupt):
        keep_activations(network, Broken(images, []), rows, 10, path, **settings)
    feed = ArrayFeed(images, [])
    kept = keep_activations(network, feed, rows, 10, path, **settings)
    assert feed.seen[0][0].index == 4
    np.testing.assert_array_equal(kept, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.npy", "whole.npy"]
