import numpy as np
import pytest

from cnn_extract.models import (
    InputConfig,
    check_model_name,
    create_model,
    embed,
    fuse_norms,
    input_config,
)
from tests.cnn_extract.conftest import TINY

torch = pytest.importorskip("torch")


def batch_of(rng, n_images, size, n_channels=3):
    pixels = rng.integers(0, 256, (n_images, size, size, n_channels)).astype(np.uint8)
    return torch.from_numpy(pixels)


def with_statistics(model):
    """Give the batch norms means and variances as training would: folding must use them."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficientnet-lite0", "tf_efficientnet_lite0"),
        ("resnt50", "resnet50"),
        ("Resnet_18", "resnet18"),
    ],
)
def test_unknown_model_suggests_near_names(name, near):
    """A list of a thousand names helps nobody."""
    with pytest.raises(ValueError, match=rf"no model '{name}'.*\b{near}\b"):
        check_model_name(name)


def test_name_like_no_model_is_an_error():
    """Nothing is near: say where the names are."""
    with pytest.raises(ValueError, match="list_models"):
        check_model_name("xyzzy123")


@pytest.mark.parametrize("name", [TINY, "test_efficientnet", "test_vit", "test_byobnet"])
def test_features_and_logits_are_the_models_own(rng, name):
    """One pass must give what timm's forward gives, folded or not."""
    model = with_statistics(create_model(name))
    config = input_config(model, size=None, n_channels=3)
    images = batch_of(rng, 2, config.size)
    x = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    with torch.inference_mode():
        expected = model((x - mean) / std)
    fused = fuse_norms(model, config.size, 3)
    for one in (model, fused):
        features, logits = embed(one, images, config)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.get_classifier()(features), logits)


def test_norms_are_folded_into_convolutions():
    """Left in place, batch norms cost a third of the time."""
    fused = fuse_norms(create_model("test_efficientnet"), 32, 3)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())


def test_model_that_cannot_be_folded_is_left_as_it_is():
    """A norm that does not follow its convolution in the forward pass must not be folded."""

    class Crossed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward_features(self, x):
            return self.conv(torch.relu(self.bn(x)))

    model = with_statistics(Crossed().eval())
    assert fuse_norms(model, 8, 3) is model


def test_flip_averages_the_image_and_its_mirror_image(rng):
    """Option hflip must average both views' features and logits (docs/recipes.md: A17)."""
    model = create_model(TINY)
    config = input_config(model, size=32, n_channels=3)
    images = batch_of(rng, 3, 32)
    plain = embed(model, images, config)
    mirrored = embed(model, images.flip(2), config)
    both = embed(model, images, config, tta="hflip")
    for one, other, got in zip(plain, mirrored, both, strict=True):
        torch.testing.assert_close(got, (one + other) / 2)
    assert not torch.allclose(plain[0], both[0])


def test_six_channels(rng):
    """Microscopy images go through a network of six input channels (docs/recipes.md: C1)."""
    model = create_model(TINY, n_channels=6)
    config = input_config(model, size=32, n_channels=6)
    assert len(config.mean) == len(config.std) == 6
    features, _ = embed(model, batch_of(rng, 2, 32, 6), config)
    assert features.shape == (2, model.num_features)


def test_size_that_the_model_does_not_take_is_an_error():
    """A vision transformer has one input size."""
    with pytest.raises(ValueError, match="takes only 160 x 160"):
        input_config(create_model("test_vit"), size=96, n_channels=3)


def test_model_without_classifier_has_no_logits(rng):
    """There is nothing to call ImageNet logits."""
    model = create_model(TINY, num_classes=0)
    features, logits = embed(model, batch_of(rng, 1, 32), InputConfig(32, (0.5,) * 3, (0.5,) * 3))
    assert logits is None
    assert features.shape == (1, model.num_features)
