"""Networks: what the head reads, and what the input is."""

import numpy as np
import pytest
import torch

from cnn_extract._torchvision import import_timm
from cnn_extract.models import InputConfig, normalise
from cnn_extract.train.networks import make_network, network_input
from cnn_extract.train.recipe import ModelRecipe
from cnn_extract.weights import Weights

NONE = Weights("none")


def network_of(n_channels=3, **settings):
    recipe = ModelRecipe(name="test_resnet", **settings)
    return make_network(recipe, NONE, ["", ""], np.full(2, 0.5), n_channels=n_channels, size=32)


def test_the_head_reads_the_last_two_stages():
    """A28: the classifier reads the last stage alone, or the stage before it is not pooled."""
    network = network_of(reads="last-two").eval()
    # test_resnet: 96 features of the last stage, 192 channels before it.
    batch = torch.randn(2, 3, 32, 32)
    features = network.features(batch)
    assert features.shape == (2, 96 + 192)
    seen = []
    network.backbone.layer3.register_forward_hook(lambda *args: seen.append(args[2]))
    plain = network.backbone.forward_head(network.backbone.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(features[:, :96], plain)
    torch.testing.assert_close(features[:, 96:], seen[0].mean((2, 3)))
    assert network(batch).shape == (2, 2)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_convnext"])
def test_last_two_works_for_other_families(name):
    """A28: only one family of models can give its stages."""
    recipe = ModelRecipe(name=name, reads="last-two")
    network = make_network(recipe, NONE, [""], np.full(1, 0.5), size=160)
    assert network(torch.randn(2, 3, 160, 160)).shape == (2, 1)


def test_six_channels_go_in():
    """C1: the first layer takes three channels only."""
    assert network_of(n_channels=6)(torch.randn(2, 6, 32, 32)).shape == (2, 2)


def test_partial_convolutions_are_in_the_network():
    """A21: the setting does nothing."""
    plain, partial = network_of().eval(), network_of(partial_conv=True).eval()
    partial.load_state_dict(plain.state_dict())
    batch = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(plain(batch), partial(batch))


def test_a_pretrained_backbone_brings_its_weights(tmp_path):
    """The network trains from random weights although a checkpoint was named."""
    source = import_timm().create_model("test_resnet")
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    recipe = ModelRecipe(name="test_resnet")
    network = make_network(recipe, Weights("file", str(path)), [""], np.full(1, 0.5), size=32)
    torch.testing.assert_close(
        network.backbone.layer3[0].conv1.weight, source.layer3[0].conv1.weight
    )


def test_a_model_without_drop_path_says_so():
    """A setting that a model does not know ends in a traceback."""
    with pytest.raises(ValueError, match=r"does not take drop_path.*set \[model\] drop_path = 0"):
        make_network(ModelRecipe(name="vgg11", drop_path=0.1), NONE, [""], np.full(1, 0.5), size=32)


def test_collected_moments_take_the_models_place():
    """B3, C1: images are normalised with ImageNet's mean although their own was asked for."""
    own = network_input("test_resnet", size=None, n_channels=6, collected=([0.1] * 6, [0.2] * 6))
    assert own == InputConfig(160, (0.1,) * 6, (0.2,) * 6)
    models = network_input("test_resnet", size=48, n_channels=3)
    assert models.size == 48
    assert models.mean != (0.1,) * 3


def test_normalise_gives_mean_zero_and_std_one(rng):
    """B3: mean and std are on another scale than the pixels."""
    images = rng.integers(0, 256, (4, 8, 8, 2)).astype(np.uint8)
    flat = images.reshape(-1, 2) / 255
    config = InputConfig(8, tuple(flat.mean(0)), tuple(flat.std(0)))
    batch = normalise(torch.from_numpy(images), config)
    assert batch.shape == (4, 2, 8, 8)
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.std((0, 2, 3), correction=0), torch.ones(2))


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b2", "efficientnet_b5", "densenet201", "seresnext101_32x4d",
        "pnasnet5large", "nasnetalarge", "legacy_senet154", "resnet101", "resnet152",
        "densenet121",
    ],
)  # fmt: skip
def test_named_architectures_are_timms(name):
    """C6, D6: an architecture of the winners is not to be had by its name."""
    config = network_input(name, size=64, n_channels=3)
    assert config.size == 64
    assert len(config.mean) == 3
