"""Curation from out-of-fold predictions: wrong labels, hard examples, pseudo-labels."""

import os

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from features.store import FeatureStore
from stacker import PairStacker
from stacker.blend import LogisticBlend, cross_fit
from stacker.cli import app
from stacker.curate import hard_examples, high_loss_images, label_issues, pseudo_labels


def flip_labels(Y, share, rng):
    """Move `share` of the labels to another class of the image, drawn by frequency."""
    image, cls = np.nonzero(Y)
    picked = rng.random(len(image)) < share
    noisy = Y.copy()
    noisy[image[picked], cls[picked]] = 0
    noisy[image[picked], rng.choice(Y.shape[1], picked.sum(), p=Y.sum(0) / Y.sum())] = 1
    return noisy, noisy != Y


def found_by(frame, column, n_images):
    """Put the values of a full table back into the order of the images."""
    values = np.zeros(n_images)
    values[frame["image_id"].astype(int)] = frame[column]
    return values


@pytest.fixture(scope="module")
def flipped(slice_stack, slice_labels, slice_fold):
    """Noisy labels, what was flipped, and cross-fitted probabilities."""
    noisy, wrong = flip_labels(slice_labels.toarray(), 0.1, np.random.default_rng(0))
    proba = cross_fit(LogisticBlend(), slice_stack, csr_array(noisy), slice_fold)
    return proba, noisy, wrong


def test_flipped_images_are_found_better_than_by_loss_or_confident_learning(flipped):
    """The chance of a wrong label must be worth more than the published loss and cleanlab's."""
    proba, noisy, wrong = flipped
    truth, n = wrong.any(axis=1), len(noisy)
    frame = high_loss_images(proba, noisy, share=1.0)
    ours = average_precision_score(truth, found_by(frame, "chance", n))
    loss = average_precision_score(truth, found_by(frame, "loss", n))
    assert ours > loss + 0.02
    cleanlab = pytest.importorskip("cleanlab.multilabel_classification")
    lists = [np.flatnonzero(row).tolist() for row in noisy]
    quality = cleanlab.get_label_quality_scores(lists, proba.astype(float))
    assert ours > average_precision_score(truth, -quality) + 0.02


@pytest.mark.slow
@pytest.mark.skipif("PAIRSTACK_OOF" not in os.environ, reason="needs the whole OOF file")
def test_flipped_rows_of_the_whole_set_are_found():
    """The figures of docs/curate.md."""
    from benchmarks.nested_openclipart import read

    stack, labels, fold, _ = read(os.environ["PAIRSTACK_OOF"])
    noisy, wrong = flip_labels(labels.toarray(), 0.1, np.random.default_rng(0))
    proba = cross_fit(LogisticBlend(), stack, csr_array(noisy), fold)
    frame = high_loss_images(proba, noisy, share=1.0, image_ids=np.arange(len(noisy)))
    assert average_precision_score(wrong.any(1), found_by(frame, "chance", len(noisy))) > 0.88


def test_the_chance_is_bayes_rule():
    """One given and one absent label, worked out by hand."""
    proba, Y = np.array([[0.2, 0.7], [0.5, 0.5]]), np.array([[1, 0], [0, 1]])
    found = label_issues(proba, Y, noise=0.25, at_least=0.0).set_index(["image_id", "class"])
    added = 0.25 * 1.5 / 3
    wrong = 0.8 * added / (0.8 * added + 0.2 * 0.75)
    missing = 0.7 * 0.25 / (0.7 * 0.25 + 0.3 * (1 - added))
    assert found.loc[("0", "0"), "chance"] == pytest.approx(wrong)
    assert found.loc[("0", "1"), "chance"] == pytest.approx(missing)
    assert found.loc[("0", "0"), "kind"] == "wrong"
    assert found.loc[("0", "1"), "kind"] == "missing"
    assert found["chance"].is_monotonic_decreasing


def test_hard_examples_are_the_highest_losses():
    """Another order would train on easy images again."""
    rng = np.random.default_rng(0)
    proba = rng.random((40, 5))
    Y = (rng.random((40, 5)) < 0.3).astype(int)
    loss = -np.log(np.where(Y, proba, 1 - proba)).sum(axis=1)
    found = hard_examples(proba, Y, share=0.1)
    assert found["image_id"].astype(int).tolist() == np.argsort(-loss)[:4].tolist()
    np.testing.assert_allclose(found["loss"], np.sort(loss)[::-1][:4], rtol=1e-5)


def test_pseudo_labels_are_the_widest_margins():
    """Recipe A7: the images with the highest mean abs(p - 0.5), with the sets as labels."""
    rng = np.random.default_rng(0)
    proba = rng.random((30, 4))
    sets = (proba > 0.5).astype(int)
    sets[:, 0] = 1
    found = pseudo_labels(proba, sets, share=0.2, classes=list("abcd"))
    expected = np.argsort(-np.abs(proba - 0.5).mean(axis=1))[:6]
    assert found["image_id"].astype(int).tolist() == expected.tolist()
    first = [name for name, given in zip("abcd", sets[expected[0]], strict=True) if given]
    assert found["labels"][0] == " ".join(first)
    assert found["weight"].between(0, 1).all()


def test_the_weight_is_the_expected_quality_of_the_set():
    """Weights follow the F-beta that the sets reach on labels drawn from the probabilities."""
    rng = np.random.default_rng(0)
    proba = rng.beta(0.3, 2, size=(400, 8))
    sets = (proba >= np.minimum(0.3, proba.max(axis=1, keepdims=True))).astype(int)
    frame = pseudo_labels(proba, sets, share=1.0, by="fbeta")
    drawn = (rng.random((200, *proba.shape)) < proba).astype(int)
    hits = (drawn * sets).sum(axis=2)
    reached = (5 * hits / (sets.sum(axis=1) + 4 * drawn.sum(axis=2))).mean(axis=0)
    assert abs(found_by(frame, "weight", 400).mean() - reached.mean()) < 0.05
    assert np.corrcoef(found_by(frame, "weight", 400), reached)[0, 1] > 0.9


def test_empty_sets_are_no_pseudo_labels_unless_asked_for():
    """An image with nothing predicted teaches a tagger to say nothing."""
    proba, sets = [[0.01, 0.01], [0.9, 0.1]], [[0, 0], [1, 0]]
    assert pseudo_labels(proba, sets, share=1.0)["image_id"].tolist() == ["1"]
    kept = pseudo_labels(proba, sets, share=1.0, keep_empty=True)
    assert kept["weight"].tolist()[0] == pytest.approx(0.99**2)


def test_sparse_input_and_unknown_images(flipped):
    """CSR gives the same table; images without out-of-fold probabilities are left out."""
    proba, noisy, _ = flipped
    dense = high_loss_images(proba, noisy)
    pd.testing.assert_frame_equal(high_loss_images(csr_array(proba), csr_array(noisy)), dense)
    holes = proba.copy()
    holes[::2] = np.nan
    found = high_loss_images(holes, noisy, share=1.0)
    assert set(found["image_id"].astype(int)) == set(range(1, len(noisy), 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: high_loss_images([[0.5]], [[1]], by="size"), "by must be of"),
        (lambda: high_loss_images([[0.5]], [[1]], share=0), "share must lie in"),
        (lambda: label_issues([[0.5]], [[1]], noise=1.0), "noise must lie between"),
        (lambda: hard_examples([[0.5]], [[1, 0]]), "same shape"),
        (lambda: hard_examples([[0.5]], [[1]], image_ids=["a", "b"]), "image_ids must have shape"),
    ],
)
def test_bad_arguments_are_named(call, message):
    """A wrong argument must say what would be right."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def store(tmp_path_factory, slice_arrays, slice_stack, slice_labels):
    """200 labelled images and 100 without labels."""
    known = np.arange(300) < 200
    return FeatureStore.from_arrays(
        tmp_path_factory.mktemp("curate") / "store",
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        probabilities={m: slice_stack.probabilities[m] for m in slice_stack.models[:2]},
        labels=slice_labels.multiply(known[:, None]).astype(np.int8),
        labels_known=known,
        split_group=slice_arrays["split_group"],
    )


@pytest.mark.parametrize("with_model", [False, True])
def test_the_command_writes_what_training_reads(store, with_model, tmp_path):
    """`cnn-extract train` finds its columns; only unlabelled images become pseudo-labelled."""
    extra = []
    if with_model:
        blocks = ("probabilities", "ranks")
        fitted = PairStacker(cv=2, blocks=blocks, random_state=0, n_jobs=1).fit(
            store.subset(store.labels_known)
        )
        fitted.save(tmp_path / "model")
        extra = ["--model", str(tmp_path / "model")]
    out = tmp_path / "curated"
    result = CliRunner().invoke(app, ["curate", str(store.path), "--out", str(out), *extra])
    assert result.exit_code == 0, result.stderr
    tables = {path.name: pd.read_csv(path, keep_default_na=False) for path in out.iterdir()}
    assert list(tables["pseudo.csv"])[:3] == ["image_id", "labels", "weight"]
    assert set(tables["pseudo.csv"]["image_id"]) <= set(store.image_ids[200:])
    assert set(tables["pseudo.csv"]["labels"].str.split().sum()) <= set(store.classes)
    for name, share in (("drop.csv", 0.02), ("hard.csv", 0.05)):
        assert {"image_id", "loss"} <= set(tables[name])
        assert len(tables[name]) == round(200 * share)
