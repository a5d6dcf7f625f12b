"""`PairStacker`: the whole second level on a small real slice."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, PredefinedSplit, cross_val_score

from features import FeatureStore, Stack
from stacker import FBetaDecision, PairStacker, fbeta_score

FAST = {"learning_rate": 0.2}
CHEAP = ("probabilities", "logits", "ranks", "class_prior")


def small(**params) -> PairStacker:
    settings = {"cv": 3, "random_state": 0, "booster_params": FAST, "blocks": CHEAP, "n_jobs": 2}
    return PairStacker(**{**settings, **params})


@pytest.fixture(scope="module")
def fitted(slice_stack, slice_labels, slice_groups):
    """One model with every default block, shared by the tests that only read it."""
    model = PairStacker(cv=3, random_state=0, booster_params=FAST, n_jobs=2)
    return model.fit(slice_stack, slice_labels, groups=slice_groups)


def test_fit_gives_out_of_fold_probabilities_and_scores(fitted, slice_stack, slice_labels):
    """What users read after fit is there, has its shape, and beats guessing nothing."""
    assert fitted.oof_proba_.shape == slice_labels.shape
    assert np.isfinite(fitted.oof_proba_).all()
    assert fitted.classes_.tolist() == slice_stack.classes.tolist()
    assert len(fitted.feature_names_) == len(fitted.feature_importances_)
    assert fitted.oof_score_ > 0.4
    assert fitted.oof_score_ >= fitted.base_score_ - 0.02


def test_predictions_agree_with_each_other(fitted, slice_stack):
    """`predict` is the decision on `predict_proba`; label lists name the same sets."""
    proba = fitted.predict_proba(slice_stack)
    sets = fitted.predict(slice_stack).toarray()
    assert proba.dtype == np.float32
    assert sets.dtype == np.int8
    np.testing.assert_array_equal(sets, fitted.decision_.predict(proba))
    names = fitted.predict_labels(slice_stack)
    assert names[7] == slice_stack.classes[sets[7] > 0].tolist()


def test_non_candidates_keep_the_base_probability(slice_stack, slice_labels):
    """A class without a row must not be predicted as 0 or left out."""
    model = small(candidates=3).fit(slice_stack, slice_labels)
    base, _ = model.base_.predict(slice_stack)
    changed = (model.predict_proba(slice_stack) != base).sum(axis=1)
    assert changed.max() <= 3 * len(set(slice_stack.class_group))


def test_shuffled_models_classes_and_images_give_the_same_predictions(fitted, slice_stack):
    """Everything is matched by name: no permutation changes any image's prediction."""
    rng = np.random.default_rng(0)
    images, classes = rng.permutation(len(slice_stack)), rng.permutation(len(slice_stack.classes))
    s = slice_stack
    shuffled = Stack(
        {m: s.probabilities[m][images][:, classes] for m in reversed(s.models)},
        image_ids=s.image_ids[images],
        classes=s.classes[classes],
        embeddings={name: values[images] for name, values in reversed(s.embeddings.items())},
        imagenet_logits={name: values[images] for name, values in s.imagenet_logits.items()},
        image_stats=s.image_stats.iloc[images, ::-1],
    )
    expected = fitted.predict_proba(slice_stack)[images]
    np.testing.assert_array_equal(fitted.predict_proba(shuffled), expected)


def test_same_seed_gives_the_same_bits(slice_stack, slice_labels):
    """Two fits with one seed must not differ in any probability."""
    first, second = (small().fit(slice_stack, slice_labels) for _ in range(2))
    np.testing.assert_array_equal(first.oof_proba_, second.oof_proba_)
    np.testing.assert_array_equal(
        first.predict_proba(slice_stack), second.predict_proba(slice_stack)
    )


@pytest.mark.parametrize("booster", ["xgboost", ("lightgbm", "xgboost")])
def test_other_boosters_fit_and_predict(booster, slice_stack, slice_labels):
    """XGBoost, and both averaged, run through the same path."""
    model = small(booster=booster).fit(slice_stack, slice_labels)
    assert model.oof_score_ > 0.4
    assert model.predict(slice_stack).shape == slice_labels.shape


def test_averaged_boosters_average_logits(slice_stack, slice_labels):
    """The correction of a pair of boosters is the mean of their raw scores."""
    model = small(booster=("lightgbm", "xgboost"), candidates=4).fit(slice_stack, slice_labels)
    batch = next(model.features_.batches(slice_stack[:5]))
    mean = np.mean([b.correction(batch.features) for b in model.boosters_], axis=0)
    image, cls = batch.row_image, batch.row_class
    parts = model.base_.predict(slice_stack[:5])
    base, start = (np.log(p / (1 - p))[image, cls] for p in map(np.float64, parts))
    odds = base + model.shrinkage_ * (start + mean - base)
    expected = 1 / (1 + np.exp(-odds))
    found = model.predict_proba(slice_stack[:5])[image, cls]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_labels_fall_back_to_the_base(slice_stack, slice_labels):
    """With nothing to learn, shrinkage leaves the base alone: the stack is the blend."""
    rng = np.random.default_rng(1)
    noise = slice_labels[rng.permutation(slice_labels.shape[0])]
    model = small(base="logistic").fit(slice_stack, noise)
    assert model.shrinkage_ == 0
    np.testing.assert_array_equal(model.oof_proba_, model.oof_base_proba_)
    # Boosted from another blend, a mixture of the two may be better calibrated, not better.
    model = small().fit(slice_stack, noise)
    assert model.oof_score_ < model.base_score_ + 0.01


def test_a_store_brings_labels_folds_and_groups(tmp_path, slice_arrays, slice_stack, slice_labels):
    """Unlabelled rows of a store are not trained on, and `cv="store"` uses its folds."""
    known = np.arange(len(slice_stack)) % 6 > 0
    store = FeatureStore.create(
        tmp_path / "store",
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        labels=slice_labels.multiply(known[:, None]).astype(np.int8),
        labels_known=known,
        fold=np.where(known, slice_arrays["fold"], -1),
        split_group=slice_arrays["split_group"],
    )
    for name, probs in slice_stack.probabilities.items():
        store.add_probabilities(name, probs)
    model = small(cv="store").fit(store)
    assert np.isnan(model.oof_proba_[~known]).all()
    assert np.isfinite(model.oof_proba_[known]).all()
    np.testing.assert_array_equal(model.folds_[known], slice_arrays["fold"][known])
    assert model.predict_proba(store).shape == slice_labels.shape


def test_label_lists_and_class_names(slice_stack, slice_labels):
    """Label lists with classes= mean the same as the matrix."""
    names = slice_stack.classes
    lists = [names[row > 0].tolist() for row in slice_labels.toarray()]
    probs = slice_stack.probabilities
    one = small().fit(probs, lists, classes=names)
    two = small().fit(Stack(probs, classes=names), slice_labels)
    np.testing.assert_array_equal(one.oof_proba_, two.oof_proba_)


def test_label_sets_are_sparse_where_the_labels_were(tmp_path, slice_stack, slice_labels):
    """The contract of `predict`, as with scikit-learn's own multi-label classifiers."""
    sparse = small().fit(slice_stack, slice_labels)
    dense = small().fit(slice_stack, slice_labels.toarray())
    sparse.save(tmp_path / "model")
    want = dense.predict(slice_stack)
    assert isinstance(want, np.ndarray)
    for model in (sparse, PairStacker.load(tmp_path / "model")):
        sets = model.predict(slice_stack)
        assert isinstance(sets, csr_array)
        assert sets.dtype == want.dtype == np.int8
        np.testing.assert_array_equal(sets.toarray(), want)
        assert model.predict_labels(slice_stack) == dense.predict_labels(slice_stack)
    assert isinstance(
        sparse.fit(slice_stack, slice_labels.toarray()).predict(slice_stack), np.ndarray
    )


def test_cross_val_score_takes_a_stack_and_an_array(slice_stack, slice_labels, slice_groups):
    """scikit-learn's model selection clones, splits by image and scores it."""
    dense = np.stack(list(slice_stack.probabilities.values()), axis=1).astype(np.float32)
    for X in (slice_stack, dense):
        scores = cross_val_score(
            small(), X, slice_labels.toarray(), groups=slice_groups, cv=GroupKFold(2)
        )
        assert scores.shape == (2,)
        assert (scores > 0.3).all()


def test_clone_keeps_parameters_untouched():
    """Parameters are stored as given, so that clone and GridSearchCV work."""
    decision = FBetaDecision(strategy="global")
    model = PairStacker(("lightgbm", "xgboost"), decision=decision, candidates={"a": 3})
    copy = clone(model)
    assert copy.get_params()["candidates"] == {"a": 3}
    assert copy.get_params()["booster"] == ("lightgbm", "xgboost")
    assert not hasattr(copy, "oof_proba_")


def test_score_is_the_f_beta_that_was_asked_for(fitted, slice_stack, slice_labels):
    """`score` uses the estimator's beta and average."""
    expected = fbeta_score(slice_labels, fitted.predict(slice_stack), 2.0, "samples")
    assert fitted.score(slice_stack, slice_labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"booster": "catboost"}, "'booster' parameter must be of"),
        ({"base": "median"}, "'base' parameter must be None"),
        ({"decision": "best"}, "'decision' parameter must be"),
        ({"blocks": ("ranks", "neighbors")}, "neighbours"),
        ({"booster_params": {"num_leafs": 3}}, "Did you mean 'num_leaves'"),
        ({"max_memory": "much"}, "max_memory must be"),
        ({"cv": "store"}, "with a FeatureStore"),
        ({"candidates": 0}, "at least 1"),
        ({"average": "weighted"}, "'average' parameter must be one of"),
        ({"beta": 0}, "'beta' parameter must be"),
    ],
)
def test_bad_parameters_are_refused_by_name(params, message, slice_stack, slice_labels):
    """A wrong parameter names itself and what would be right."""
    model = small(**params)
    with pytest.raises(ValueError, match=message):
        model.fit(slice_stack, slice_labels)
    assert not hasattr(model, "boosters_")  # not after the boosting, which takes hours


def test_new_arrays_without_names_take_the_classes_of_fit(slice_stack, slice_labels):
    """A mapping of plain arrays predicts like the named stack it was taken from."""
    probs, names = slice_stack.probabilities, slice_stack.classes
    model = small().fit(probs, slice_labels, classes=names)
    expected = model.predict_proba(Stack(probs, classes=names))
    np.testing.assert_array_equal(model.predict_proba(probs), expected)
    assert model.score(probs, slice_labels) == model.score(
        Stack(probs, classes=names), slice_labels
    )
    with pytest.raises(ValueError, match="classes"):
        model.predict_proba({m: p[:, 1:] for m, p in probs.items()})


def test_missing_model_class_and_labels_are_refused(fitted, slice_stack):
    """What fit knew and prediction lacks is named."""
    probs = slice_stack.probabilities
    fewer = {m: probs[m] for m in slice_stack.models[1:]}
    with pytest.raises(ValueError, match=f"lacks the model '{slice_stack.models[0]}'"):
        fitted.predict_proba(Stack(fewer, classes=slice_stack.classes))
    with pytest.raises(ValueError, match="missing or unknown"):
        fitted.predict_proba(Stack({m: p[:, 1:] for m, p in probs.items()}))
    with pytest.raises(ValueError, match="Y is missing"):
        small().fit(slice_stack)


def test_one_group_in_two_folds_is_refused(slice_stack, slice_labels):
    """A splitter that parts a group would score on near-duplicates of training images."""
    from sklearn.model_selection import KFold

    groups = np.arange(len(slice_stack)) // 2
    with pytest.raises(ValueError, match="fold"):
        small(cv=KFold(3, shuffle=True, random_state=0)).fit(
            slice_stack, slice_labels, groups=groups
        )


@pytest.mark.parametrize("case", ["threshold", "fold", "nothing"])
def test_folds_without_candidates_are_refused(case, slice_stack, slice_labels):
    """Where no image of a fold has a row there is nothing to boost; LightGBM's own error came."""
    fold = np.arange(300) % 3
    params = {"cv": PredefinedSplit(fold), "blocks": ("logits",), "n_jobs": 1}
    probs = {m: np.asarray(p, np.float32) / 2 for m, p in slice_stack.probabilities.items()}
    if case == "threshold":
        params["candidates"] = 0.9
    else:
        gone = fold == 1 if case == "fold" else fold >= 0
        probs = {m: csr_array(np.where(gone[:, None], 0, p)) for m, p in probs.items()}
    with pytest.raises(ValueError, match=r"no image of fold \d has a candidate"):
        PairStacker(**params).fit(probs, slice_labels)


def test_a_number_of_folds_may_be_numpys(slice_stack, slice_labels):
    """Features took fewer folds for `np.int64(3)` than for 3, and the model was another."""
    one, other = (
        small(cv=cv, blocks=("class_prior",)).fit(slice_stack, slice_labels)
        for cv in (3, np.int64(3))
    )
    np.testing.assert_array_equal(one.oof_proba_, other.oof_proba_)
