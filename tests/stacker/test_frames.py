"""DataFrames are matched by the names of rows and columns wherever labels meet probabilities."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from features import Stack
from stacker import (
    FBetaDecision,
    PairStacker,
    StackingMultilabelClassifier,
    evaluate,
    expected_fbeta_sets,
    fbeta_score,
)
from stacker.adapt import PriorShift, TargetAdapter
from stacker.blend import EnsembleSelection, LogisticBlend
from stacker.calibration import ProbabilityCalibrator, reliability_curve
from stacker.curate import hard_examples
from stacker.evaluation import (
    Predictions,
    bootstrap_fbeta,
    bootstrap_map,
    evaluate_sets,
    log_loss,
    mean_average_precision,
    score_by_bin,
    score_methods,
)

IDS = [f"image{i}" for i in range(60)]
CLASSES = list("abcd")


@pytest.fixture(scope="module")
def case():
    """Probabilities and labels as frames, and both in another order of images and classes."""
    rng = np.random.default_rng(0)
    Y = (rng.random((60, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(np.int8)
    proba = np.clip(0.5 * Y + 0.5 * rng.random(Y.shape), 0.001, 0.999)
    frames = [pd.DataFrame(v, index=IDS, columns=CLASSES) for v in (proba, Y)]
    rows, columns = rng.permutation(60), [2, 0, 3, 1]
    return *frames, *(frame.iloc[rows, columns] for frame in frames)


def as_polars(frame):
    """The same frame of polars, ids in a column."""
    columns = {name: frame[name].to_numpy() for name in frame}
    return pl.DataFrame({"image_id": frame.index.tolist(), **columns})


SCORES = {
    "fbeta_score": lambda p, y: fbeta_score(y, (p > 0.5) * 1),
    "evaluate_sets": lambda p, y: evaluate_sets(y, (p > 0.5) * 1, p),
    "log_loss": lambda p, y: log_loss(y, p),
    "map": lambda p, y: mean_average_precision(y, p),
    "bootstrap_fbeta": lambda p, y: (
        bootstrap_fbeta(y, (p > 0.5) * 1, (p > 0.8) * 1, n=20).difference
    ),
    "bootstrap_map": lambda p, y: bootstrap_map(y, p, (p > 0.5) * 0.5, n=20).difference,
    "reliability": lambda p, y: reliability_curve(p, y)["rate"].tolist(),
    "decision": lambda p, y: FBetaDecision(strategy="global").fit(p, y).thresholds_[0],
    "hard": lambda p, y: hard_examples(p, y)["image_id"].tolist(),
}


@pytest.mark.parametrize("name", SCORES)
def test_labels_in_another_order_score_the_same(case, name):
    """Shuffled rows or columns of one frame were scored against other images' labels."""
    proba, Y, _, shuffled = case
    assert SCORES[name](proba, shuffled) == SCORES[name](proba, Y)
    assert SCORES[name](proba, shuffled.to_numpy()) != SCORES[name](proba, Y)


def test_scores_by_bin_match_frames_too(case):
    """The bins' codes follow the labels' columns, the other frames follow by name."""
    proba, Y, other, _ = case
    want = score_by_bin(Y, (proba > 0.5) * 1, proba, [0, 0, 1, 1], ["x", "y"])
    got = score_by_bin(Y, (other > 0.5) * 1, other, [0, 0, 1, 1], ["x", "y"])
    pd.testing.assert_frame_equal(got, want)


@pytest.mark.parametrize("convert", [lambda frame: frame, as_polars])
def test_classes_in_another_order_than_fit_meet_their_own_thresholds(case, convert):
    """A class's threshold or curve was applied to another class's column."""
    proba, Y, other, other_Y = map(convert, case)
    rule = FBetaDecision(strategy="class", shrinkage=0).fit(proba, Y)
    assert len(set(rule.thresholds_)) > 1
    order = case[0].index.get_indexer(case[2].index)
    np.testing.assert_array_equal(rule.predict(other), rule.predict(proba)[order])
    assert rule.score(other, other_Y) == rule.score(proba, Y)
    curve = ProbabilityCalibrator("platt", "class").fit(proba, Y)
    np.testing.assert_array_equal(curve.transform(other), curve.transform(proba)[order])
    shift = PriorShift().fit(proba, other_Y, other)
    want = PriorShift().fit(proba, Y, other)
    np.testing.assert_array_equal(shift.transform(other), want.transform(proba)[order])
    adapter = TargetAdapter().fit(proba, Y, other, other_Y)
    np.testing.assert_array_equal(adapter.predict_proba(other), adapter.predict_proba(proba)[order])


def test_a_loaded_rule_still_knows_its_classes(case):
    """A rule that was saved took frames by position where the fitted one took them by name."""
    proba, Y, other, _ = case
    for fitted, use in (
        (FBetaDecision(strategy="class", shrinkage=0), "predict"),
        (ProbabilityCalibrator("platt", "class"), "transform"),
    ):
        loaded = type(fitted).from_state(fitted.fit(proba, Y).to_state())
        want = getattr(fitted, use)(other)
        np.testing.assert_array_equal(getattr(loaded, use)(other), want)
        with pytest.raises(ValueError, match="DataFrames are matched by name"):
            getattr(loaded, use)(other.rename(columns={"a": "z"}))


def test_polars_frames_with_ids_are_scored_and_decided(case):
    """The column of ids was taken for probabilities."""
    proba, Y, *_ = case
    np.testing.assert_array_equal(expected_fbeta_sets(as_polars(proba)), expected_fbeta_sets(proba))
    assert log_loss(as_polars(Y), as_polars(proba)) == log_loss(Y, proba)
    assert fbeta_score(as_polars(Y), as_polars(Y)) == 1


def test_frames_without_names_are_matched_by_position(case):
    """0, 1, 2, ... is what pandas counts by itself; such frames are arrays."""
    proba, Y, *_ = case
    plain = pd.DataFrame(Y.to_numpy())
    assert log_loss(plain, proba) == log_loss(Y, proba)
    # A fold of frames that were numbered alike.
    part = [plain.iloc[[5, 3, 9]], plain.iloc[[9, 5, 3]]]
    assert fbeta_score(*part) == 1
    # A fold of a frame without names beside one with ids.
    assert log_loss(plain.iloc[5:9], proba.iloc[5:9]) == log_loss(Y.iloc[5:9], proba.iloc[5:9])


def test_frames_of_other_images_or_classes_are_refused(case):
    """They have the same shape, and were scored."""
    proba, Y, *_ = case
    rule = FBetaDecision(strategy="global").fit(proba, Y)
    with pytest.raises(
        ValueError, match=r"proba: 60 of 60 expected image ids are missing.*by name"
    ):
        log_loss(Y.rename(index=lambda name: f"x{name}"), proba)
    with pytest.raises(ValueError, match="proba: 1 of 4 expected class names are missing"):
        rule.predict(proba.rename(columns={"a": "z"}))


def test_lists_of_names_are_refused_with_what_makes_a_matrix():
    """NumPy said "inhomogeneous shape", which tells nothing about labels."""
    with pytest.raises(ValueError, match=r"Y holds label names \('a' first\).*as_label_matrix"):
        fbeta_score([["a", "b"], []], [["a"], []])
    with pytest.raises(ValueError, match="y holds label names"):
        StackingMultilabelClassifier([("tree", "drop"), ("x", FBetaDecision())]).fit(
            [[0.1], [0.2]], [["a"], ["b", "a"]]
        )


def test_labels_in_a_frame_are_taken_beside_arrays_whose_classes_are_named(case):
    """Rows without ids were refused as other images; columns by position would be a guess."""
    proba, Y, *_ = case
    X = {"m": proba.to_numpy(), "n": proba.to_numpy() ** 2}
    settings = {"cv": 2, "blocks": ("logits",), "random_state": 0, "n_jobs": 1}
    model = PairStacker(**settings).fit(X, Y.iloc[:, ::-1], classes=CLASSES)
    assert model.classes_.tolist() == CLASSES
    with pytest.raises(ValueError, match=r"Y names its classes \(\['a', 'b', 'c'\].*give classes="):
        PairStacker(**settings).fit(X, Y)
    assert model.score(X, Y.iloc[:, ::-1]) == model.score(X, Y.to_numpy())
    np.testing.assert_array_equal(
        model.predict_proba(X), PairStacker(**settings).fit(X, Y.to_numpy()).predict_proba(X)
    )
    with pytest.raises(ValueError, match=r"ids are missing.* give Stack\(\.\.\., image_ids=\)"):
        model.score(Stack(X, classes=CLASSES), Y)
    with pytest.raises(ValueError, match="kind must be of"):
        model.predict_frame(X, kind="labels")


def test_classes_of_a_polars_frame_are_its_columns():
    """They came out as 0, 1, ..."""
    from sklearn.neighbors import KNeighborsClassifier

    X, Y = np.arange(20.0)[:, None], pl.DataFrame({"a": [0, 1] * 10, "b": [1, 1, 0, 0] * 5})
    near = KNeighborsClassifier(3)
    model = StackingMultilabelClassifier([("near", near)], near, cv=2).fit(X, Y)
    assert model.classes_.tolist() == ["a", "b"]


def test_groups_weights_and_lists_in_a_series_follow_its_index(case):
    """A Series sorted otherwise than the images gave them other images' groups and labels."""
    proba, Y, *_ = case
    order = np.random.default_rng(1).permutation(60)
    groups = pd.Series(np.repeat(np.arange(20), 3), index=IDS)
    weight = pd.Series(np.linspace(0.1, 2, 60), index=IDS)
    lists = pd.Series([[c for c in CLASSES if Y.loc[i, c]] for i in IDS], index=IDS)
    settings = {"cv": 3, "blocks": ("logits",), "random_state": 0, "n_jobs": 1}
    X = {"m": proba, "n": proba**2}
    want = PairStacker(**settings).fit(X, Y, groups.to_numpy(), sample_weight=weight.to_numpy())
    got = PairStacker(**settings).fit(
        X, lists.iloc[order], groups.iloc[order], sample_weight=weight.iloc[order]
    )
    np.testing.assert_array_equal(got.folds_, want.folds_)
    np.testing.assert_array_equal(got.oof_proba_, want.oof_proba_)
    found = evaluate(got, X, Y, groups.iloc[order], n=20).table
    assert found.n_groups == 20
    assert found.gains == evaluate(got, X, Y, groups.to_numpy(), n=20).table.gains
    with pytest.raises(ValueError, match="groups: 60 of 60 expected image ids are missing"):
        PairStacker(**settings).fit(X, Y, groups.rename(index=lambda name: f"x{name}"))
    rules = [FBetaDecision(random_state=0).fit(proba, Y, g) for g in (groups, groups.iloc[order])]
    np.testing.assert_equal(rules[0].cv_results_, rules[1].cv_results_)


@pytest.mark.parametrize("blend", [LogisticBlend, EnsembleSelection])
def test_blends_match_frames_by_name(case, blend):
    """Shuffled labels gave other weights, and a class got the weights of another."""
    proba, Y, other, other_Y = case
    X, turned = ({"m": p, "n": p**2} for p in (proba, other))
    fitted = blend().fit(X, other_Y)
    want = pd.DataFrame(blend().fit(X, Y).predict_proba(X), index=IDS, columns=CLASSES)
    np.testing.assert_array_equal(fitted.predict_proba(X), want)
    np.testing.assert_array_equal(
        fitted.predict_proba(turned), want.loc[other.index, other.columns]
    )
    with pytest.raises(ValueError, match="Y is missing"):
        blend().fit(X, None)


def test_labels_without_names_stand_in_the_order_of_classes_of_x(case):
    """New frames with other column order: an array of labels was read in the order of training."""
    proba, Y, other, other_Y = case
    model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1)
    X, turned = ({"m": p, "n": p**2} for p in (proba, other))
    wanted = model.fit(X, Y).score(X, Y)
    assert model.score(turned, other_Y) == wanted
    assert model.score(turned, other_Y.to_numpy()) == wanted
    found = evaluate(model, turned, other_Y.to_numpy(), n=20).table.scores
    assert found.loc["stack", "f2_samples"] == wanted


def test_groups_in_a_series_follow_its_index_in_adapters_and_intervals(case):
    """A Series of groups sorted otherwise than the images gave them other images' groups."""
    proba, Y, *_ = case
    groups = pd.Series(np.repeat(np.arange(20), 3), index=IDS)
    turned = groups.sample(frac=1, random_state=0)
    sets = (proba > 0.5).astype(int), (proba > 0.7).astype(int)
    for score in (
        lambda g: PriorShift().fit(proba, Y, proba, groups=g).spread_,
        lambda g: bootstrap_fbeta(Y, *sets, g, n=20),
        lambda g: bootstrap_fbeta(Y, *sets, g, average="macro", n=20),
        lambda g: bootstrap_map(Y, proba, proba**2 * sets[0], g, n=20),
    ):
        assert score(turned) == score(groups.to_numpy())
    adapted = [TargetAdapter(random_state=0).fit(proba, Y, proba, Y, g) for g in (groups, turned)]
    np.testing.assert_equal(*(own.decision_.cv_results_ for own in adapted))


def test_methods_are_scored_with_their_frames_in_the_order_of_the_labels(case):
    """Label sets and probabilities of other order were scored against other images."""
    proba, Y, other, _ = case
    groups = pd.Series(np.repeat(np.arange(20), 3), index=IDS)
    tables = [
        score_methods(
            Y,
            {
                "mean": Predictions("Mean", p, {"samples": (p > 0.5).astype(int)}, is_blend=True),
                "stack": Predictions("Stack", proba, {"samples": (proba > 0.4).astype(int)}),
            },
            own_groups,
            averages=["samples"],
            n=20,
        )
        for p, own_groups in (
            (proba, groups.to_numpy()),
            (other, groups.sample(frac=1, random_state=0)),
        )
    ]
    assert tables[0].to_dict() == tables[1].to_dict()


def test_a_multilabel_stack_scores_a_frames_columns_by_name(case):
    """Labels whose columns stand in another order were scored as other classes."""
    from sklearn.neighbors import KNeighborsClassifier

    proba, Y, *_ = case
    near = KNeighborsClassifier(3)
    model = StackingMultilabelClassifier([("near", near)], near, cv=2).fit(proba, Y)
    assert model.score(proba, Y[CLASSES[::-1]]) == model.score(proba, Y) > 0.3
