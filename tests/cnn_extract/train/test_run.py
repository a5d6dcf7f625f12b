"""`cnn-extract train` from end to end on tiny pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cnn_extract.cli import app
from cnn_extract.run import RefusedError
from cnn_extract.train import run as run_module
from cnn_extract.train.checkpoint import read_model
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.run import train
from features.store import FeatureStore
from tests.cnn_extract.conftest import picture
from tests.cnn_extract.train.conftest import write_table

RECIPE = """
folds = 2
[batch]
size = 8
[input]
crop = "squash"
[[stage]]
epochs = 1
train = "head"
lr = 0.01
[[stage]]
epochs = 1
train = "all"
lr = 0.001
"""


@pytest.fixture
def request_of(tmp_path, make_set):
    """Make a request for a tiny run."""

    def make(text=RECIPE, n_images=16, n_labelled=None, **changes):
        folder, labels, _ = make_set(n_images, n_labelled)
        recipe = tmp_path / "mine.toml"
        recipe.write_text(text)
        given = {
            "images": folder,
            "labels": labels,
            "recipe": str(recipe),
            "out": tmp_path / "out",
            "model": "test_resnet=none",
            "size": 32,
            "workers": 0,
            "device": "cpu",
            "chunk_images": 8,
        }
        return TrainRequest(**(given | changes))

    return make


def store_of(request):
    return FeatureStore.open(request.store or request.out / "store")


def probs_of(request, name="mine"):
    return store_of(request).probability_array(name)


def test_a_run_writes_networks_curves_and_out_of_fold_predictions(request_of, silent):
    """A file of the contract is missing, or the store's model is incomplete."""
    request = request_of(n_images=16, n_labelled=12)
    summary = train(request, silent)
    assert summary.complete
    for fold in (0, 1):
        names = {path.name for path in (request.out / f"fold{fold}").iterdir()}
        assert names >= {"model.safetensors", "model.json", "log.csv"}
    store = store_of(request)
    assert store.models == ["mine"]
    assert store.is_complete("probabilities/mine")
    assert store.image_stats is not None
    assert store.array_attrs("probabilities/mine")["recipe"]["stage"][0]["train"] == "head"
    assert not any(path.suffix in (".pt", ".pth", ".pkl") for path in request.out.rglob("*"))


def test_each_image_is_predicted_by_the_network_that_did_not_see_it(request_of, silent):
    """Predictions are in-sample: every score above them is a lie."""
    request = request_of(n_images=16, n_labelled=12)
    train(request, silent)
    store = store_of(request)
    folds = store.fold_probabilities("mine")
    own = store.probability_array("mine")
    unlabelled = store.fold < 0
    assert unlabelled.sum() == 4
    np.testing.assert_allclose(own[unlabelled], folds[:, unlabelled].mean(0), rtol=1e-5)
    for fold in (0, 1):
        _, about = read_model(request.out / f"fold{fold}")
        assert about["n_images"] == ((store.fold != fold) & store.labels_known).sum()


def test_changing_a_folds_labels_leaves_its_predictions(request_of, silent, tmp_path):
    """Labels of the held-out fold leak into its network."""
    request = request_of(n_images=16)
    train(request, silent)
    store = store_of(request)
    lists = store.labels.toarray().astype(bool)
    held_out = store.fold == 0
    changed = np.where(held_out[:, None], ~lists, lists)
    # All classes stay in use, so that the networks have the same shape.
    table = [
        [i, " ".join(store.classes[row])] for i, row in zip(store.image_ids, changed, strict=True)
    ]
    labels = write_table(tmp_path / "changed.csv", ["image_id", "labels"], table)
    other = FeatureStore.create(
        tmp_path / "other",
        image_ids=store.image_ids,
        classes=store.classes,
        labels=changed.astype(int),
        fold=store.fold,
        chunk_images=8,
    )
    again = replace(request, labels=labels, out=tmp_path / "again", store=other.path)
    train(again, silent)
    before, after = probs_of(request), probs_of(again)
    np.testing.assert_array_equal(before[held_out], after[held_out])
    assert (before[~held_out] != after[~held_out]).any()


def test_two_runs_with_one_seed_are_alike_bit_for_bit(request_of, silent, tmp_path):
    """A run cannot be repeated."""
    request = request_of()
    train(request, silent)
    train(replace(request, out=tmp_path / "two"), silent)
    one, two = probs_of(request), probs_of(replace(request, out=tmp_path / "two"))
    np.testing.assert_array_equal(one, two)
    train(replace(request, out=tmp_path / "three", seed=1), silent)
    assert (one != probs_of(replace(request, out=tmp_path / "three"))).any()


def test_an_interrupted_run_ends_as_an_uninterrupted_one(request_of, silent, tmp_path, monkeypatch):
    """Resuming begins a fold anew, skips one, or draws other numbers."""
    request = request_of()
    whole = replace(request, out=tmp_path / "whole")
    train(whole, silent)
    from cnn_extract.train import loop

    saves = []
    original = loop.save_progress

    def stop(folder, progress):
        original(folder, progress)
        saves.append(folder)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_progress", stop)
    with pytest.raises(KeyboardInterrupt):
        train(request, silent)
    train(request, silent)
    # Two epochs for each fold, none of them twice.
    assert len(saves) == 4
    np.testing.assert_array_equal(probs_of(request), probs_of(whole))


def test_complete_and_other_runs_are_refused(request_of, silent):
    """A finished run is overwritten, or resumed with other settings."""
    request = request_of()
    train(replace(request, only_folds=(0,)), silent)
    with pytest.raises(RefusedError, match=r"unfinished run with other settings \(recipe\)"):
        train(replace(request, settings=("stage.lr=0.5",)), silent)
    train(request, silent)
    with pytest.raises(RefusedError, match="is complete; choose another --out, or --force"):
        train(request, silent)
    assert train(replace(request, force=True), silent).complete


def test_a_foreign_folder_is_refused(request_of, silent):
    """--out destroys what was there."""
    request = request_of()
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("mine")
    with pytest.raises(RefusedError, match="not made by cnn-extract train"):
        train(replace(request, force=True), silent)
    assert (request.out / "thesis.txt").read_text() == "mine"


def test_folds_may_be_trained_one_by_one(request_of, silent):
    """A run of single folds never completes, or the store gets half a model."""
    request = request_of()
    assert not train(replace(request, only_folds=(1,)), silent).complete
    assert store_of(request).models == []
    assert train(replace(request, only_folds=(0,)), silent).complete
    with pytest.raises(ValueError, match="--fold must be from 0 to 1; got 7"):
        train(replace(request, only_folds=(7,), out=request.out / "x"), silent)


def test_a_second_recipe_joins_the_first_ones_store(request_of, silent, tmp_path):
    """Models to be stacked have other folds, or their own stores."""
    request = request_of()
    shared = tmp_path / "shared"
    train(replace(request, store=shared), silent)
    train(replace(request, store=shared, out=tmp_path / "two", name="second"), silent)
    assert FeatureStore.open(shared).models == ["mine", "second"]
    other = write_table(tmp_path / "l.csv", ["image_id", "labels"], [["i000", "tag::a tag::b"]])
    with pytest.raises(ValueError, match="holds other classes than"):
        train(replace(request, store=shared, out=tmp_path / "three", labels=other), silent)


def test_dropped_images_are_not_trained_on_but_predicted(request_of, silent, tmp_path):
    """A5: dropped images stay in training, or vanish from the store."""
    drop = write_table(tmp_path / "drop.csv", ["image_id"], [["i000"], ["i005"]])
    request = request_of(drop=drop)
    summary = train(request, silent)
    assert summary.n_trained_on == 14
    assert not np.isnan(probs_of(request)).any()
    counts = [read_model(request.out / f"fold{k}")[1]["n_images"] for k in (0, 1)]
    assert sum(counts) == 14


def test_pseudo_labelled_images_train_every_fold(request_of, silent, tmp_path):
    """A7: pseudo-labels are ignored, or held out."""
    pseudo = write_table(
        tmp_path / "p.csv",
        ["image_id", "labels", "weight"],
        [["i012", "tag::a", 0.5], ["i013", "tag::b tag::common", 1]],
    )
    request = request_of(n_labelled=12, pseudo=pseudo)
    assert train(request, silent).n_trained_on == 14
    counts = [read_model(request.out / f"fold{k}")[1]["n_images"] for k in (0, 1)]
    assert sum(counts) == 12 + 2 * 2
    other = replace(request, out=tmp_path / "plain", pseudo=None)
    train(other, silent)
    assert (probs_of(request) != probs_of(other)).any()


def test_class_groups_train_separately(request_of, silent):
    """A8: culture and tag share a network, or their columns are swapped in the store."""
    request = request_of(RECIPE + "groups = ['tag']\n", settings=("model.separate=true",))
    train(request, silent)
    models = {g: read_model(request.out / "fold0" / f"group{g}")[1] for g in (0, 1)}
    assert models[0]["classes"] == ["culture::x"]
    assert models[1]["classes"] == ["tag::a", "tag::b", "tag::c", "tag::common"]
    # The second stage is of tags alone (A19).
    assert [row["stage"] for row in models[0]["log"]] == ["1"]
    assert [row["stage"] for row in models[1]["log"]] == ["1", "2"]
    probs = np.load(request.out / "fold0" / "group0" / "predictions.npy")
    rows = store_of(request).fold == 0
    np.testing.assert_array_equal(probs_of(request)[rows][:, [0]], probs)


def test_only_head_leaves_the_backbone_as_it_was(request_of, silent, tmp_path):
    """D1: adapting the last layer changes the layers below it."""
    source = train_checkpoint(tmp_path)
    request = request_of(model=f"test_resnet={source}", only_head=True, embeddings=False)
    train(request, silent)
    state, _ = read_model(request.out / "fold0")
    given = torch.load(source)
    for name in ("conv1.0.weight", "layer4.0.bn1.running_mean", "bn1.weight"):
        assert torch.equal(state[f"backbone.{name}"], given[name])


def train_checkpoint(tmp_path):
    """Write a checkpoint of a tiny model, as a user would have one."""
    from cnn_extract._torchvision import import_timm

    path = tmp_path / "weights.pth"
    torch.save(import_timm().create_model("test_resnet").state_dict(), path)
    return path


def test_embeddings_and_imagenet_logits_of_the_backbone_come_along(request_of, silent, tmp_path):
    """The neighbours and ImageNet features have nothing to stand on."""
    request = request_of(model=f"test_resnet={train_checkpoint(tmp_path)}")
    train(request, silent)
    store = store_of(request)
    assert store.embedding_names == ["test_resnet"]
    assert store.imagenet_names == ["test_resnet"]


def test_a_copy_is_tuned_for_each_domain(request_of, silent, tmp_path):
    """C4: an image is predicted by another domain's copy, or all copies are alike."""
    meta = write_table(
        tmp_path / "meta.csv",
        ["image_id", "cell"],
        [[f"i{k:03}", "huvec" if k % 4 < 2 else "rpe"] for k in range(16)],
    )
    text = RECIPE + "domain = 'each'\n"
    request = request_of(text, metadata=meta, domain="cell")
    train(request, silent)
    copies = [read_model(request.out / "fold0" / f"domain{k}") for k in (0, 1)]
    assert [about["domain"] for _, about in copies] == ["huvec", "rpe"]
    assert sum(about["n_images"] for _, about in copies) == 8
    first, second = (state["backbone.conv1.0.weight"] for state, _ in copies)
    shared, _ = read_model(request.out / "fold0")
    assert not torch.equal(first, second)
    assert not torch.equal(first, shared["backbone.conv1.0.weight"])
    with pytest.raises(ValueError, match="--domain 'line' must be a column of --metadata"):
        train(replace(request, domain="line", out=tmp_path / "x"), silent)


def test_domain_weights_weigh_and_leave_out(request_of, silent, tmp_path):
    """D2: source images weigh as much as target images."""
    lines = [[f"i{k:03}", "source" if k < 10 else "target"] for k in range(16)]
    meta = write_table(tmp_path / "meta.csv", ["image_id", "origin"], lines)
    request = request_of(metadata=meta, domain="origin", domain_weights={"source": 0.0})
    assert train(request, silent).n_trained_on == 6
    with pytest.raises(ValueError, match=r"--domain-weight names 'sauce'.*'source', 'target'"):
        train(replace(request, domain_weights={"sauce": 1.0}, out=tmp_path / "x"), silent)
    with pytest.raises(ValueError, match="--domain-weight needs --domain"):
        train(replace(request, domain=None, out=tmp_path / "y"), silent)


def test_training_begins_from_another_runs_networks(request_of, silent, tmp_path):
    """D1: --init is ignored, or networks of another fold leak."""
    first = request_of()
    train(first, silent)
    second = replace(
        first, out=tmp_path / "second", init=first.out, store=first.out / "store", name="second",
        only_head=True,
    )  # fmt: skip
    train(second, silent)
    before, after = (read_model(r.out / "fold1")[0] for r in (first, second))
    assert torch.equal(before["backbone.conv1.0.weight"], after["backbone.conv1.0.weight"])
    assert not torch.equal(before["head.1.weight"], after["head.1.weight"])
    other = replace(second, out=tmp_path / "third", store=tmp_path / "thirds", seed=5)
    with pytest.raises(ValueError, match=r"held out here, first: 'i0.*use the same store"):
        train(other, silent)


def test_a_teacher_is_asked_for(request_of, silent):
    """A27: a recipe that distils trains without a teacher."""
    request = request_of(settings=("distill.weight=0.7",))
    with pytest.raises(ValueError, match=r"learns from a teacher: name the store.*--teacher"):
        train(request, silent)


def test_a_teacher_changes_what_is_learnt(request_of, silent, tmp_path):
    """A27: the teacher's predictions are read and not used."""
    request = request_of()
    train(request, silent)
    taught = replace(
        request,
        out=tmp_path / "taught",
        settings=("distill.weight=0.7",),
        teacher=f"{request.out / 'store'}:mine",
    )
    train(taught, silent)
    assert (probs_of(request) != probs_of(taught)).any()


def test_six_channels_train_extract_and_have_statistics(silent, tmp_path, rng):
    """C1, B3: images of six channels break somewhere between decoding and the store."""
    folder = tmp_path / "cells"
    folder.mkdir()
    for k in range(12):
        pixels = np.concatenate([picture(rng, 36, 40), picture(rng, 36, 40) // 3], axis=2)
        np.save(folder / f"c{k:02}.npy", pixels)
    labels = write_table(
        tmp_path / "l.csv", ["image_id", "labels"], [[f"c{k:02}", f"s{k % 3}"] for k in range(12)]
    )
    request = TrainRequest(
        images=folder,
        labels=labels,
        recipe="recursion",
        out=tmp_path / "out",
        model=f"test_resnet={train_checkpoint(tmp_path)}",
        size=32,
        epochs=1,
        folds=2,
        settings=("batch.size=4",),
        workers=0,
        device="cpu",
    )
    train(request, silent)
    store = store_of(request)
    assert sum(str(c).startswith("mean_c") for c in store.image_stats.columns) == 6
    np.testing.assert_allclose(probs_of(request, "recursion").sum(1), 1, rtol=1e-5)
    assert store.embeddings("test_resnet").shape == (12, 96)
    state, about = read_model(request.out / "fold0")
    assert len(about["input"]["mean"]) == 6
    assert state["backbone.conv1.0.weight"].shape[1] == 6


def test_collected_mean_and_std_are_those_of_all_pixels(request_of, silent, rng, tmp_path):
    """B3: images are averaged without regard to their sizes."""
    request = request_of(settings=("input.normalise=collected",), only_folds=(0,))
    big = picture(rng, 90, 70)
    Image.fromarray(big).save(request.images / "i000.png")
    train(request, silent)
    pixels = [
        np.asarray(Image.open(path)).reshape(-1, 3) for path in sorted(request.images.iterdir())
    ]
    flat = np.concatenate(pixels) / 255
    _, about = read_model(request.out / "fold0")
    np.testing.assert_allclose(about["input"]["mean"], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(about["input"]["std"], flat.std(0), rtol=1e-5)


def test_an_unreadable_image_stops_or_is_left_out(request_of, silent, tmp_path):
    """A broken image is silently replaced by another one's pixels."""
    request = request_of()
    (request.images / "i003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read image i003.png"):
        train(request, silent)
    assert train(replace(request, on_error="skip", out=tmp_path / "o"), silent).n_trained_on == 15
    store = store_of(replace(request, out=tmp_path / "o"))
    assert np.isnan(store.probability_array("mine")[3]).all()
    assert store.errors[3]


def test_the_command_trains_and_tells(request_of, tmp_path):
    """The command line does not reach the options."""
    request = request_of()
    arguments = [
        "train", str(request.images), "--labels", str(request.labels), "--recipe", request.recipe,
        "--out", str(request.out), "--model", request.model, "--size", "32", "--workers", "0",
        "--set", "input.hflip=0.0", "--epochs", "1", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "model    mine: complete" in done.output
    note = json.loads((request.out / "run.json").read_text())
    assert note["settings"]["recipe"]["input"]["hflip"] == 0.0
    assert CliRunner().invoke(app, arguments).exit_code == 2
    wrong = [*arguments, "--set", "input.hflop=1"]
    assert "did you mean 'hflip'" in CliRunner().invoke(app, wrong).output


def test_recipes_are_listed_and_printed():
    """A preset cannot be looked at before it is run."""
    listed = CliRunner().invoke(app, ["recipes"])
    assert "imet-1st" in listed.output
    assert len(listed.output.strip().splitlines()) == 9
    printed = CliRunner().invoke(app, ["recipes", "imet-1st"])
    assert 'loss = "focal"  # A4' in printed.output
    assert CliRunner().invoke(app, ["recipes", "nothing"]).exit_code == 1


def test_tensorboard_is_optional(request_of, silent, monkeypatch):
    """Without tensorboard the error names no package."""
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    request = request_of(tensorboard=True)
    with pytest.raises(ImportError, match=r"pip install 'pairstack\[tensorboard\]'"):
        train(request, silent)


def test_run_module_names_its_contract():
    """The note's name is part of the contract with --init."""
    assert run_module.NOTE == "run.json"
