"""scikit-learn citizenship: model selection, pipelines, pandas, threads, options of `fit`."""

import numpy as np
import pandas as pd
import pytest
from optuna.trial import FixedTrial
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline

from features import Stack
from stacker import FBetaDecision, PairStacker
from stacker._tuning_space import default_draw, draw_settings
from stacker.calibration import ProbabilityCalibrator

CHEAP = ("probabilities", "logits", "ranks")


def small(**params) -> PairStacker:
    settings = {"cv": 2, "random_state": 0, "blocks": CHEAP, "candidates": 6, "n_jobs": 1}
    return PairStacker(**{**settings, **params})


@pytest.fixture(scope="module")
def case(slice_stack, slice_labels, slice_groups):
    """120 images and 20 classes: a Stack, its 3-D array, labels, groups."""
    images = np.arange(120)
    columns = np.argsort(-np.asarray(slice_labels.sum(axis=0)).ravel())[:20]
    stack = Stack(
        {m: slice_stack.probabilities[m][images][:, columns] for m in slice_stack.models[:3]},
        image_ids=slice_stack.image_ids[images],
        classes=slice_stack.classes[columns],
        embeddings={name: values[images] for name, values in slice_stack.embeddings.items()},
    )
    dense = np.stack(list(stack.probabilities.values()), axis=1).astype(np.float32)
    return stack, dense, slice_labels[images][:, columns].toarray(), slice_groups[images]


@pytest.mark.parametrize("kind", [0, 1])
def test_cross_val_score_of_the_defaults_over_grouped_folds(case, kind):
    """The call of the docs, with a Stack and with a 3-D array."""
    X, Y, g = case[kind], case[2], case[3]
    scores = cross_val_score(PairStacker(), X, Y, groups=g, cv=GroupKFold(5))
    assert scores.shape == (5,)
    assert (scores > 0.3).all()


def test_grid_search_over_two_parameters(case):
    """Clones get their parameters, the best is refitted and predicts."""
    grid = {"candidates": [2, 6], "base": ["mean", "logit_mean"]}
    search = GridSearchCV(small(), grid, cv=GroupKFold(2))
    search.fit(case[0], case[2], groups=case[3])
    assert len(search.cv_results_["params"]) == 4
    assert set(search.best_params_) == set(grid)
    assert search.predict(case[0]).shape == case[2].shape


def test_a_pipeline_ends_in_a_stack(case):
    """`Pipeline` passes three-dimensional X on and reads score and parameters."""
    _stack, dense, Y, _ = case
    pipeline = Pipeline([("stack", small())]).set_params(stack__candidates=4)
    alone = small(candidates=4).fit(dense, Y)
    np.testing.assert_array_equal(
        pipeline.fit(dense, Y).predict_proba(dense), alone.predict_proba(dense)
    )
    assert pipeline.score(dense, Y) == alone.score(dense, Y)


def test_calibration_and_decision_make_a_pipeline_that_gives_pandas(case):
    """`set_output` reaches the transformer; its columns are the classes."""
    stack, dense, Y, _ = case
    names = stack.classes
    frame = pd.DataFrame(dense[:, 0], columns=names)
    pipeline = Pipeline([("calibrate", ProbabilityCalibrator()), ("decide", FBetaDecision())])
    pipeline.set_output(transform="pandas").fit(frame, Y)
    moved = pipeline[:-1].transform(frame)
    assert isinstance(moved, pd.DataFrame)
    assert moved.columns.tolist() == names.tolist()
    assert pipeline.predict(frame).shape == Y.shape


def test_data_frames_are_matched_by_name(case):
    """Shuffled rows and columns of one model's frame mean the same predictions."""
    stack, _, Y, _ = case
    frames = {
        model: pd.DataFrame(probs, index=stack.image_ids, columns=stack.classes)
        for model, probs in stack.probabilities.items()
    }
    last = list(frames)[-1]
    shuffled = {**frames, last: frames[last].sample(frac=1, random_state=0).iloc[:, ::-1]}
    labels = pd.DataFrame(Y, index=stack.image_ids, columns=stack.classes)
    plain = small().fit(frames, labels)
    other = small().fit(shuffled, labels.sample(frac=1, random_state=1).iloc[:, ::-1])
    np.testing.assert_array_equal(plain.oof_proba_, other.oof_proba_)
    np.testing.assert_array_equal(plain.predict_proba(frames), other.predict_proba(shuffled))


@pytest.mark.parametrize("booster", ["lightgbm", "xgboost"])
def test_threads_do_not_change_a_bit(case, booster):
    """One and two threads give the same model."""
    stack, _, Y, _ = case
    one, two = (small(booster=booster, n_jobs=n).fit(stack, Y) for n in (1, 2))
    np.testing.assert_array_equal(one.oof_proba_, two.oof_proba_)
    np.testing.assert_array_equal(one.predict_proba(stack), two.predict_proba(stack))


def test_equal_weights_are_no_weights_and_others_count(case):
    """`sample_weight` reaches the boosters: ones change nothing, others do."""
    stack, _, Y, _ = case
    plain = small().fit(stack, Y)
    ones = small().fit(stack, Y, sample_weight=np.ones(len(Y)))
    np.testing.assert_array_equal(plain.oof_proba_, ones.oof_proba_)
    weight = np.where(np.arange(len(Y)) % 2, 4.0, 0.25)
    weighted = small().fit(stack, Y, sample_weight=weight)
    assert plain.boosters_[0].to_text() != weighted.boosters_[0].to_text()
    for bad in (np.ones(3), -np.ones(len(Y)), np.full(len(Y), np.nan)):
        with pytest.raises(ValueError, match="sample_weight must hold 120 finite numbers"):
            small().fit(stack, Y, sample_weight=bad)


@pytest.mark.parametrize("booster", ["lightgbm", "xgboost"])
def test_monotone_probability_never_falls_where_the_blend_rises(case, booster):
    """With monotone=True a larger blended logit alone cannot lower the trees' sum."""
    stack, _, Y, _ = case
    model = small(booster=booster, booster_params={"monotone": True}).fit(stack, Y)
    batch = next(model.features_.batches(stack)).features.copy()
    blend = model.feature_names_.index("logit:blend")
    sums = []
    for value in np.linspace(-8, 4, 25, dtype=np.float32):
        batch[:, blend] = value
        sums.append(model.boosters_[0].correction(batch))
    assert (np.diff(sums, axis=0) >= -1e-6).all()
    with pytest.raises(ValueError, match="needs a column of the blended probability"):
        small(booster_params={"monotone": True}, blocks=("ranks",)).fit(stack, Y)
    with pytest.raises(ValueError, match="monotone must be True or False"):
        small(booster_params={"monotone": 1.5}).fit(stack, Y)


def test_the_class_id_is_dropped_where_grouped_folds_do_not_choose_it(case):
    """Each class's positives come from one group: the id memorises and must not be split on."""
    rng = np.random.default_rng(0)
    n_groups, n_classes = 20, 20
    group = np.repeat(np.arange(n_groups), 15)
    Y = np.zeros((len(group), n_classes), dtype=np.int8)
    own = np.arange(n_groups) % n_classes
    Y[np.arange(len(group)), own[group]] = rng.random(len(group)) < 0.8
    probs = {m: np.clip(0.25 * Y + 0.5 * rng.random(Y.shape), 0, 1) for m in "ab"}
    model = small(blocks=(*CHEAP, "class_id"), candidates=None, cv=4)
    model.fit(probs, Y, groups=group)
    assert model.feature_importances_[model.feature_names_.index("class_id")] == 0


def test_parameters_unknown_to_xgboost_are_refused_by_near_name(case):
    """A name of the other library, or a misspelt one, must not be ignored."""
    with pytest.raises(ValueError, match=r"XGBoost has no parameter 'max_leafs'.*'max_leaves'"):
        small(booster="xgboost", booster_params={"max_leafs": 3}).fit(case[0], case[2])


@pytest.mark.parametrize(
    ("booster", "alias", "name"),
    [("lightgbm", "min_child_samples", "min_data_in_leaf"), ("xgboost", "eta", "learning_rate")],
)
def test_an_alias_of_a_booster_parameter_counts_as_its_name(case, booster, alias, name):
    """Beside the default under the main name, the libraries ignored it without a word."""
    gains = [
        small(booster=booster, booster_params={key: 1}).fit(case[0], case[2]).feature_importances_
        for key in (alias, name)
    ]
    np.testing.assert_array_equal(*gains)
    drawn = draw_settings(
        FixedTrial(default_draw(booster, "mean")),
        booster,
        blocks=[],
        fixed={alias: 1},
        base="mean",
    )
    assert drawn.booster_params[name] == 1
    assert alias not in drawn.booster_params


@pytest.mark.parametrize(
    ("booster", "name"), [("lightgbm", "n_estimators"), ("lightgbm", "n_jobs"), ("xgboost", "seed")]
)
def test_booster_parameters_that_nobody_reads_are_refused(case, booster, name):
    """Rounds, threads and seed come from elsewhere: a number given here had no effect."""
    with pytest.raises(ValueError, match=f"{name!r} would not be read. Rounds are chosen by"):
        small(booster=booster, booster_params={name: 1}).fit(case[0], case[2])


def test_a_fitted_model_clones_to_an_unfitted_one(case):
    """`clone` keeps parameters and drops what was learned."""
    model = small(booster_params={"learning_rate": 0.1}).fit(case[0], case[2])
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not [name for name in vars(copy) if name.endswith("_")]


def test_polars_frames_in_and_frames_out(case):
    """Ids in a column, rows and columns in any order; results carry the names of both."""
    polars = pytest.importorskip("polars")
    stack, _, Y, _ = case
    given = {}
    for model, probs in stack.probabilities.items():
        frame = pd.DataFrame(probs, columns=stack.classes).iloc[:, ::-1]
        frame.insert(0, "image_id", stack.image_ids)
        given[model] = polars.from_dict(frame.iloc[::-1].to_dict(orient="list"))
    sets = pd.DataFrame(Y, columns=stack.classes).assign(image_id=stack.image_ids)
    plain = Stack(stack.probabilities, stack.image_ids, stack.classes)
    model = small().fit(given, polars.from_dict(sets.to_dict(orient="list")))
    oracle = small().fit(plain, Y)
    got = model.predict_frame(given)
    np.testing.assert_allclose(
        got.loc[stack.image_ids, stack.classes], oracle.predict_proba(plain), atol=1e-6
    )
    other = model.predict_frame(given, "sets", library="polars")
    assert other["image_id"].to_list() == got.index.tolist()
    np.testing.assert_array_equal(
        other.drop("image_id").to_numpy(), model.predict_frame(given, "sets").to_numpy()
    )
    with pytest.raises(ValueError, match="library must be of"):
        model.predict_frame(given, library="arrow")
