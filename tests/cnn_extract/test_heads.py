import numpy as np
import pytest
from scipy import sparse

from cnn_extract.heads import HEADS, check_heads, fit_head, write_head
from features.store import FeatureStore

torch = pytest.importorskip("torch")


def clusters(rng, n_images, dim=12, n_classes=4):
    """Embeddings around one centre a class, float16 as in the store; labels one-hot."""
    own = np.arange(n_images) % n_classes
    centres = 3 * rng.standard_normal((n_classes, dim))
    embeddings = centres[own] + rng.standard_normal((n_images, dim))
    labels = sparse.csr_array(np.eye(n_classes, dtype=np.int8)[own])
    return embeddings.astype(np.float16), labels


def make_store(tmp_path, rng, *, n_images=40, n_labelled=40, skipped=()):
    embeddings, labels = clusters(rng, n_images)
    labels = labels.toarray()
    labels[n_labelled:] = 0
    known = np.arange(n_images) < n_labelled
    store = FeatureStore.create(
        tmp_path / "store",
        image_ids=[f"i{k}" for k in range(n_images)],
        classes=list("abcd"),
        labels=labels,
        labels_known=known,
        fold=np.where(known, np.arange(n_images) // 4 % 2, -1),
        chunk_images=16,
    )
    store.set_errors(list(skipped), "unreadable")
    store.require_array("embeddings/net", (12,), np.float16, ("dim",))
    for start in range(0, n_images, 16):
        store.write_rows("embeddings/net", start, embeddings[start : start + 16])
    return store, embeddings


@pytest.mark.parametrize("head", HEADS)
def test_head_learns_separable_classes(rng, head):
    """A head that does not learn what a nearest centre knows is broken."""
    embeddings, labels = clusters(rng, 300)
    model = fit_head(embeddings[:200], labels[:200], HEADS[head], seed=0)
    probs = model.predict(embeddings[200:])
    truth = labels[200:].toarray()
    assert probs.dtype == np.float32
    assert (probs.argmax(axis=1) == truth.argmax(axis=1)).mean() > 0.97
    assert np.abs(probs.mean(axis=0) - truth.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_same_bits(rng, head):
    """A resumed run must not differ from an uninterrupted one, nor depend on torch's state."""
    embeddings, labels = clusters(rng, 60)
    torch.manual_seed(1)
    one = fit_head(embeddings, labels, HEADS[head], seed=5).predict(embeddings)
    torch.manual_seed(2)
    two = fit_head(embeddings, labels, HEADS[head], seed=5).predict(embeddings)
    three = fit_head(embeddings, labels, HEADS[head], seed=6).predict(embeddings)
    assert one.tobytes() == two.tobytes() != three.tobytes()


def test_dimension_that_never_varies_gives_no_nan(rng):
    """Dividing by a standard deviation of zero would spread NaN over the head."""
    embeddings, labels = clusters(rng, 40)
    embeddings[:, 3] = 0.3
    probs = fit_head(embeddings, labels, HEADS["linear"], seed=0).predict(embeddings)
    assert np.isfinite(probs).all()


def test_class_without_images_stays_improbable(rng):
    """A class that no training image has needs a finite prior, near zero."""
    embeddings, labels = clusters(rng, 40)
    empty = sparse.csr_array(np.hstack([labels.toarray(), np.zeros((40, 1), np.int8)]))
    probs = fit_head(embeddings, empty, HEADS["mlp"], seed=0).predict(embeddings)
    assert probs[:, 4].max() < 0.05


def test_probabilities_are_out_of_fold(tmp_path, rng, silent):
    """Labels of fold 1 must not reach the probabilities of fold 1."""
    store, _ = make_store(tmp_path / "1", rng)
    write_head(store, "net", "linear", seed=0, report=silent)
    before = store.probability_array("net.linear")
    changed, _ = make_store(tmp_path / "2", np.random.default_rng(0))
    labels = changed.labels.toarray()
    labels[changed.fold == 1] = 1 - labels[changed.fold == 1]
    changed.set_labels(labels)
    write_head(changed, "net", "linear", seed=0, report=silent)
    after = changed.probability_array("net.linear")
    own = store.fold == 1
    assert before[own].tobytes() == after[own].tobytes()
    assert np.abs(before[~own] - after[~own]).max() > 0.1


def test_unlabelled_images_get_every_fold_models_opinion(tmp_path, rng, silent):
    """Means over fold models are smoother than out-of-fold rows, so they are kept apart."""
    store, _ = make_store(tmp_path, rng, n_labelled=30)
    write_head(store, "net", "mlp", seed=0, report=silent)
    by_fold, mean = store.fold_probabilities("net.mlp"), store.probability_array("net.mlp")
    assert by_fold.shape == (2, 40, 4)
    assert np.isnan(by_fold[:, :30]).all()
    np.testing.assert_allclose(by_fold[:, 30:].mean(axis=0), mean[30:], rtol=1e-6)
    assert not np.array_equal(by_fold[0, 30:], by_fold[1, 30:])


def test_skipped_images_train_nothing_and_get_nothing(tmp_path, rng, silent):
    """An image that could not be read has no embedding to learn from."""
    store, _ = make_store(tmp_path, rng, skipped=[3, 20])
    write_head(store, "net", "linear", seed=0, report=silent)
    probs = store.probability_array("net.linear")
    assert np.flatnonzero(np.isnan(probs).any(axis=1)).tolist() == [3, 20]
    assert store.is_complete("probabilities/net.linear")


def test_finished_head_is_not_fitted_again(tmp_path, rng, silent, monkeypatch):
    """Resuming must cost nothing for what is complete."""
    store, _ = make_store(tmp_path, rng)
    assert write_head(store, "net", "linear", seed=0, report=silent)
    monkeypatch.setattr("cnn_extract.heads.fit_head", None)
    assert not write_head(store, "net", "linear", seed=0, report=silent)
    # Another head needs fitting, which is now impossible.
    with pytest.raises(TypeError):
        write_head(store, "net", "mlp", seed=0, report=silent)


def test_heads_are_independent_of_each_other(tmp_path, rng, silent):
    """Adding a head or a backbone to the command must not change the others' numbers."""
    alone, _ = make_store(tmp_path / "1", rng)
    write_head(alone, "net", "mlp", seed=0, report=silent)
    both, _ = make_store(tmp_path / "2", np.random.default_rng(0))
    write_head(both, "net", "linear", seed=0, report=silent)
    write_head(both, "net", "mlp", seed=0, report=silent)
    one, two = alone.probability_array("net.mlp"), both.probability_array("net.mlp")
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("names", [["bilinear"], [], ["mlp", "mlp"]])
def test_unknown_or_repeated_heads_are_refused(names):
    """The message lists what there is."""
    with pytest.raises(ValueError, match="some of linear, mlp, each once"):
        check_heads(names)
