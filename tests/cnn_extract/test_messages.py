"""What each refusal of the CNN part says; the longer ones are tested beside what they guard."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cnn_extract import extract, weights
from cnn_extract.decode import decode_pixels
from cnn_extract.heads import check_heads
from cnn_extract.images import ImageError, open_images
from cnn_extract.models import check_model_name, create_model, input_config
from cnn_extract.tables import read_labels
from cnn_extract.weights import _load_pretrained


def fixed(name="vit_tiny_patch16_224"):
    """A model that takes one size of images alone."""
    return SimpleNamespace(
        pretrained_cfg={"input_size": (3, 224, 224), "fixed_input_size": True, "architecture": name}
    )


CALLS = {
    "heads": (lambda: check_heads(["linear", "deep"]), "heads must be some of .*, each once; got"),
    "heads twice": (lambda: check_heads(["mlp", "mlp"]), "each once; got mlp, mlp"),
    "no head": (lambda: check_heads([]), "each once; got none"),
    "near": (
        lambda: check_model_name("resnet5O"),
        "timm has no model 'resnet5O'; near names: .*resnet50",
    ),
    "far": (
        lambda: check_model_name("qqqqqqqqqqqq"),
        r"timm has no model 'qqqqqqqqqqqq'; see timm\.list_models",
    ),
    "size": (
        lambda: input_config(fixed(), size=64, n_channels=3),
        "this model takes only 224 x 224 pixels; got --size 64",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_the_refusal_names_the_rule_and_the_value(what):
    """A message that leaves out the value sends its reader to the debugger."""
    call, message = CALLS[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_images_that_are_not_there_are_named(tmp_path):
    """A misspelt folder is reported as one without images."""
    with pytest.raises(
        FileNotFoundError, match=r"must be a folder or a zip file; there is no .*gon"
    ):
        open_images(tmp_path / "gone")


def test_a_member_that_unpacks_to_far_more_is_named(tmp_path):
    """Ten kilobytes unpack to gigabytes of memory."""
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("a.png", bytes(60_000_000))
    with pytest.raises(ImageError, match=r"it unpacks from .* to 60,000,000 bytes, which no image"):
        open_images(tmp_path / "z.zip").decode(0)


def test_an_image_with_other_channels_is_named(tmp_path):
    """Rows of grey images with alpha among those of colour: a shape error without a name."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"image a.png has 3 channels; the first image of .* 6"):
        decode_pixels(open_images(tmp_path), 0, 6)


def test_an_id_that_leaves_the_folder_is_refused(tmp_path):
    """A table of labels reads a file anywhere on the machine."""
    (tmp_path / "labels.csv").write_text("image_id,labels\n../x,a\n")
    message = r"an image's id is its path inside the images' folder; .*leaves it, first: '\.\./x'"
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.csv")


def test_an_image_that_vanished_during_the_run_stops_it():
    """A row of zeros stands for an image that was there an hour ago."""
    part = SimpleNamespace(errors={3: "cannot read x.png"}, images=np.zeros((1, 3, 4, 4)))
    with pytest.raises(ImageError, match=r"cannot read x.png; it was readable when this run began"):
        extract._compute(None, None, None, frozenset(), part)


def test_a_hub_that_cannot_be_reached_names_the_other_ways(monkeypatch):
    """A traceback of the network library, and no word of the weights package."""

    def fail(*arguments, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(weights, "create_model", fail)
    with pytest.raises(ValueError, match=r"hub gave no weights for 'x' \(no route to host\)\. "):
        _load_pretrained("x", 3)


def test_the_model_that_the_messages_are_tried_on_is_there():
    """A test of names that no model has says nothing."""
    assert check_model_name("test_resnet") == "test_resnet"
    assert input_config(create_model("test_resnet", n_channels=3), size=32, n_channels=3).size == 32
