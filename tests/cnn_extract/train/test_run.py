"""`cnn-extract train` from end to end on tiny pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from cnn_extract.cli import app
from cnn_extract.run import RefusedError
from cnn_extract.train import run as run_module
from cnn_extract.train.checkpoint import read_model
from cnn_extract.train.run import train
from features.store import FeatureStore
from tests.cnn_extract.train.conftest import (
    probs_of,
    store_of,
    train_checkpoint,
    write_table,
)


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


def test_embeddings_and_imagenet_logits_of_the_backbone_come_along(request_of, silent, tmp_path):
    """The neighbours and ImageNet features have nothing to stand on."""
    request = request_of(model=f"test_resnet={train_checkpoint(tmp_path)}")
    train(request, silent)
    store = store_of(request)
    assert store.embedding_names == ["test_resnet"]
    assert store.imagenet_names == ["test_resnet"]


def test_an_unreadable_image_stops_or_is_left_out(request_of, silent, tmp_path):
    """A broken image is silently replaced by another one's pixels."""
    request = request_of()
    (request.images / "i003.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image i003\.png"):
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
    assert CliRunner().invoke(app, ["recipes", "nothing"]).exit_code == 2


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


def test_a_name_that_is_taken_is_refused_before_training(request_of, silent, tmp_path):
    """The refusal comes after days of training."""
    request = request_of()
    train(request, silent)
    other = replace(
        request,
        out=tmp_path / "other",
        store=request.out / "store",
        settings=("stage.lr=0.5",),
    )
    with pytest.raises(RefusedError, match=r"has a model 'mine' of another recipe.*--name"):
        train(other, silent)
    assert not (tmp_path / "other" / "fold0").exists()
