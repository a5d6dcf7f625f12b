"""What each refusal of training says; the longer ones are tested beside what they guard."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cnn_extract.images import open_images
from cnn_extract.run import Request
from cnn_extract.tables import Labels
from cnn_extract.train.augment import View, decode_views
from cnn_extract.train.checkpoint import _flatten, read_model, save_model
from cnn_extract.train.data import _open_store, _samples
from cnn_extract.train.presets import preset_text
from cnn_extract.train.recipe import InputRecipe
from cnn_extract.train.request import parse_weights
from cnn_extract.train.run import _prepare_folder
from cnn_extract.train.toml import parse_recipe, read_recipe, with_settings
from cnn_extract.train.trunk import run_trunk
from cnn_extract.train.units import Trainer, Unit, unit_stages
from features.store import FeatureStore

STAGE = "[[stage]]\nepochs = 1\n"


def recipe(text):
    return parse_recipe(text, name="mine", where="mine.toml")


CALLS = {
    "no TOML": (lambda: recipe("folds ="), "mine.toml is no TOML file: Invalid value"),
    "nested": (lambda: recipe("a = " + "[" * 100_000), "mine.toml is no TOML file: .*nested"),
    "stages": (
        lambda: recipe("stage = 3"),
        r"mine.toml: write each stage as a table \[\[stage\]\]",
    ),
    "no stage": (lambda: recipe("stage = []"), r"write each stage as a table \[\[stage\]\]"),
    "no table": (lambda: recipe("batch = 3"), r"mine.toml: \[batch\] must be a table; got 3"),
    "kind": (
        lambda: recipe(f"[batch]\nsize = 'x'\n{STAGE}"),
        r"mine.toml: \[batch\] size must be a whole number; got 'x'",
    ),
    "a huge number": (
        lambda: recipe(f"{STAGE}lr = 1{'0' * 400}\n"),
        r"\[\[stage\]\] 1 lr must be a finite number; got 1000",
    ),
    "rule": (
        lambda: recipe(f"[batch]\nsize = 0\n{STAGE}"),
        r"mine.toml: \[batch\] size must be .*; got 0",
    ),
    "set": (
        lambda: with_settings(recipe(STAGE), ["folds=x"]),
        "--set: the top level folds must be",
    ),
    "preset": (lambda: preset_text("imat"), "no recipe 'imat': neither a file nor one of .*imet"),
    "weight": (lambda: parse_weights(["a"]), "must be DOMAIN=WEIGHT, at least 0; got 'a'"),
    "negative": (lambda: parse_weights(["a=-1"]), "DOMAIN=WEIGHT, at least 0; got 'a=-1'"),
    "infinite": (lambda: parse_weights(["a=inf"]), "DOMAIN=WEIGHT, at least 0; got 'a=inf'"),
    "group": (
        lambda: unit_stages(
            recipe(f"[model]\nseparate = true\n{STAGE}groups = ['b']\n"),
            Unit(0, "a", np.arange(1), "fold0/group0"),
            ["a", "b"],
        ),
        "recipe 'mine' has no stage for class group 'a'",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_the_refusal_names_the_rule_and_the_value(what):
    """A message that leaves out the value sends its reader to the debugger."""
    call, message = CALLS[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_recipe_of_another_encoding_is_named(tmp_path):
    """A codec's message does not say which of the files it read."""
    (tmp_path / "r.toml").write_bytes(b"about = 'caf\xe9'")
    with pytest.raises(ValueError, match=r"r\.toml is no TOML file: .*codec.* Save it as UTF-8"):
        read_recipe(tmp_path / "r.toml")


def test_an_image_that_vanished_during_training_stops_it(tmp_path):
    """Another image stands in for it, and its labels are learnt for that one."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = open_images(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png.*; it was readable when this run began"):
        decode_views(source, [View(0, -1)], recipe=InputRecipe(), size=8, n_channels=3)


def test_an_optimisers_state_is_numbers_and_text():
    """Something else would be written as its name and read back as text."""
    with pytest.raises(TypeError, match=r"must hold tensors, numbers and text; state\.a is <obj"):
        _flatten({"a": object()}, "state", {})


def test_a_module_that_the_network_never_calls_is_no_cut():
    """Activations of a module that does not run are those of nothing."""
    network = torch.nn.Identity()
    network.backbone = torch.nn.ModuleDict({"unused": torch.nn.Identity()})
    with pytest.raises(RuntimeError, match="the forward pass never came to module 'unused'"):
        run_trunk(network, torch.zeros(1), "unused")


def test_kept_activations_go_with_one_network_alone():
    """Activations of the pretrained network are taken for those of another run's."""
    given = {"trunk_feed": None, "recipe": recipe("[batch]\ncompile = true\n" + STAGE)}
    trainer = SimpleNamespace(request=SimpleNamespace(init=None), **given)
    with pytest.raises(ValueError, match=r"cache_trunk goes neither with --init nor with batch.c"):
        Trainer._keep_trunk(trainer)


class Network(torch.nn.Module):
    """A backbone and a head of some sizes."""

    def __init__(self, n=2, layer="a"):
        super().__init__()
        self.backbone = torch.nn.ModuleDict({layer: torch.nn.Linear(n, n)})
        self.head = torch.nn.Linear(n, 1)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (None, r"--init .* has no finished network fold0"),
        (Network(layer="b"), r"--init .* has networks of another model: \['backbone\.b"),
        (Network(3), "--init .* has networks of another shape: Error"),
    ],
)
def test_networks_of_another_run_must_fit(tmp_path, kept, message):
    """Training begins from random weights, and says that it began from a run's."""
    if kept is not None:
        save_model(tmp_path / "fold0", kept.state_dict(), {"classes": ["a"]})
    store = SimpleNamespace(classes=np.array(["a"]))
    trainer = SimpleNamespace(
        _refuse_other_folds=lambda run, fold: None, data=SimpleNamespace(store=store)
    )
    with pytest.raises(ValueError, match=message):
        Trainer._begin_from(trainer, tmp_path, Unit(0, None, np.arange(1), "fold0"), Network())


@pytest.fixture
def store(tmp_path):
    """Make a store of two images in two folds."""
    return FeatureStore.create(
        tmp_path / "store", image_ids=["a", "b"], classes=["x"], labels=[["x"]] * 2, fold=[0, 1]
    )


@pytest.mark.parametrize(
    ("names", "folds", "message"),
    [
        ("ab", 3, "has 2 folds, and --folds asks for 3; leave --folds out to use the store's"),
        ("ac", None, "holds other images than .*: 2 are in one of them only, first: 'b', 'c'"),
    ],
)
def test_a_store_of_other_images_or_folds_is_refused(store, tmp_path, names, folds, message):
    """Predictions of one set of images are written beside another's labels."""
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    source = open_images(tmp_path)
    labels = Labels("labels.csv", tuple(names), (("x",), ("x",)), ("x",))
    wanted = Request(images=tmp_path, labels=tmp_path, models=(), out=store.path)
    with pytest.raises(ValueError, match=message):
        _open_store(SimpleNamespace(folds=folds), wanted, source, labels, None, None)


def test_training_on_nothing_is_refused(store, tmp_path):
    """An epoch of no batches ends in a division by zero."""
    pd.DataFrame({"image_id": ["a", "b"]}).to_csv(tmp_path / "drop.csv", index=False)
    request = SimpleNamespace(
        drop=tmp_path / "drop.csv", id_column="image_id", hard=None, pseudo=None, domain_weights={}
    )
    with pytest.raises(ValueError, match="no image is left to train on: all are dropped, or have"):
        _samples(request, recipe(STAGE), store, None, None)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"complete": true, "checksum": "0"}'])
def test_a_damaged_note_of_a_run_is_named(tmp_path, content, silent):
    """A run is taken for complete, or ends in a codec's message without a file."""
    (tmp_path / "run.json").write_bytes(content)
    request = SimpleNamespace(out=tmp_path, force=False)
    with pytest.raises(ValueError, match=r"run\.json is damaged: it does not have its checksum"):
        _prepare_folder(request, None, {}, "store", silent)


def test_a_damaged_note_of_a_network_is_named(tmp_path):
    """The same of a network: its weights are read as another's."""
    save_model(tmp_path, {"w": torch.ones(1)}, {"fold": 0})
    (tmp_path / "model.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"model\.json is damaged: it does not have its checksum"):
        read_model(tmp_path)
