"""What a stage trains, and that the rest stays as it is."""

import pytest
import torch

from cnn_extract._torchvision import import_timm
from cnn_extract.train.freeze import (
    first_of_last_stages,
    parameters_of_last_stages,
    set_trained,
    train_mode,
)
from tests.cnn_extract.train.conftest import recipe_of, tiny_network


def backbone_of(name):
    return import_timm().create_model(name, num_classes=0)


@pytest.mark.parametrize(
    ("name", "last", "module"),
    [
        ("test_resnet", {"layer4"}, "layer4"),
        ("test_efficientnet", {"blocks.4", "conv_head", "bn2"}, "blocks.4"),
        ("test_vit", {"blocks.5", "norm"}, "blocks.5"),
        ("test_convnext", {"stages.3", "head"}, "stages.3"),
        ("tf_efficientnet_lite0", {"blocks.6", "conv_head", "bn2"}, "blocks.6"),
    ],
)
def test_the_last_stage_is_the_models_own(name, last, module):
    """A19: "last-stage" trains a single norm, or half of the model."""
    backbone = backbone_of(name)
    found = parameters_of_last_stages(backbone, 1)
    wanted = [n for n, _ in backbone.named_parameters() if n.startswith(tuple(last))]
    assert found == wanted
    assert first_of_last_stages(backbone, 1) == module
    two = parameters_of_last_stages(backbone, 2)
    assert set(found) < set(two) < {n for n, _ in backbone.named_parameters()}


@pytest.mark.parametrize("train", ["all", "head", "last-stage", "last-two-stages"])
def test_only_the_named_part_learns(train):
    """C3, A27, D1: a frozen part gets gradients, or the head none."""
    network = tiny_network(recipe_of(), [""])
    trained = set(set_trained(network, train))
    head = {n for n, _ in network.named_parameters() if n.startswith("head.")}
    n_stages = {"head": 0, "last-stage": 1, "last-two-stages": 2}.get(train)
    if n_stages is None:
        assert trained == {n for n, _ in network.named_parameters()}
    else:
        last = parameters_of_last_stages(network.backbone, n_stages)
        assert trained == head | {f"backbone.{n}" for n in last}


def test_frozen_batch_norms_keep_their_statistics():
    """A19: parameters are frozen, but the running mean of the batch norms moves on."""
    network = tiny_network(recipe_of(), [""])
    set_trained(network, "last-stage")
    before = {n: b.clone() for n, b in network.named_buffers()}
    with train_mode(network):
        network(torch.randn(8, 3, 32, 32))
    moved = {n for n, b in network.named_buffers() if not torch.equal(b, before[n])}
    assert moved
    assert all(n.startswith("backbone.layer4") for n in moved)
    assert not network.training
