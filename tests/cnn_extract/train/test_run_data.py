"""What a run trains on: tables, domains, teachers, class groups, channels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_extract.train.checkpoint import read_model
from cnn_extract.train.data import load_data
from cnn_extract.train.presets import find_recipe
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.run import train
from features.store import FeatureStore
from tests.cnn_extract.conftest import picture
from tests.cnn_extract.train.conftest import (
    RECIPE,
    probs_of,
    store_of,
    train_checkpoint,
    write_table,
)


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
    with pytest.raises(ValueError, match=r"--domain-weight needs --domain"):
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


def test_two_domains_adapt_their_heads_alone(request_of, silent, tmp_path):
    """D1, C4: adapting to a domain changes the layers below the head, or no copy at all."""
    lines = [[f"i{k:03}", "ab"[k % 2]] for k in range(16)]
    meta = write_table(tmp_path / "meta.csv", ["image_id", "half"], lines)
    first, _, second = RECIPE.rpartition("[[stage]]")
    adapt = second.replace('"all"', '"head"') + 'domain = "each"\n'
    request = request_of(f"{first}[[stage]]{adapt}", metadata=meta, domain="half")
    assert train(request, silent).complete
    for fold in (0, 1):
        shared, _ = read_model(request.out / f"fold{fold}")
        copies = [read_model(request.out / f"fold{fold}" / f"domain{k}")[0] for k in (0, 1)]
        for name, value in shared.items():
            alike = [torch.equal(value, copy[name]) for copy in copies]
            assert alike == [name.startswith("backbone.")] * 2, name


def test_parents_reach_the_store(request_of, silent, tmp_path):
    """B1: the second level knows no hierarchy."""
    parents = write_table(tmp_path / "p.csv", ["class", "parent"], [["tag::a", "tag::common"]])
    request = request_of(parents=parents, only_folds=(0,))
    train(request, silent)
    space = store_of(request).label_space
    assert space.parents[space.index(["tag::a"])[0]] == space.index(["tag::common"])[0]


def test_hard_images_are_marked_and_dropped_ones_gone(request_of, silent, tmp_path):
    """A5, A6: --hard is not read, or marks other images once some are dropped."""
    from cnn_extract.train.data import load_data
    from cnn_extract.train.request import resolve_recipe

    hard = write_table(tmp_path / "hard.csv", ["image_id", "loss"], [["i004", 2.5]])
    drop = write_table(tmp_path / "drop.csv", ["image_id"], [["i001"]])
    request = request_of(hard=hard, drop=drop)
    samples = load_data(request, resolve_recipe(request)[0], silent).samples
    assert samples.rows.tolist() == [0, *range(2, 16)]
    assert samples.rows[samples.listed_hard].tolist() == [4]


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


def test_a_stores_folds_that_part_a_group_are_refused(request_of, silent, tmp_path):
    """Out-of-fold predictions of images whose near-duplicates were trained on."""
    request = request_of()
    recipe = find_recipe(request.recipe)
    load_data(request, recipe, silent)
    groups = [f"g{k // 2}" for k in range(16)]
    meta = write_table(
        tmp_path / "meta.csv",
        ["image_id", "split_group"],
        [[f"i{k:03}", group] for k, group in enumerate(groups)],
    )
    refused = r"a split group must lie in one fold; \d groups do not"
    with pytest.raises(ValueError, match=refused):
        load_data(replace(request, metadata=meta), recipe, silent)
    FeatureStore.open(request.out / "store", "r+").set_split_group(groups)
    with pytest.raises(ValueError, match=refused):
        load_data(request, recipe, silent)
