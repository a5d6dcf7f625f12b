"""Ids and class names, not places: no permutation of the inputs changes an image's prediction."""

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.schema import Stack
from features.store import FeatureStore
from stacker import PairStacker

N_IMAGES, N_CLASSES = 120, 6
FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def data(slice_arrays):
    """Two models' predictions of some images of the slice, as frames."""
    part = slice_arrays
    columns = np.sort(np.argsort(-part["labels"].sum(axis=0))[:N_CLASSES])
    ids, classes = part["image_id"][:N_IMAGES], part["classes"][columns]
    frames = {
        str(part["model"][m]): pd.DataFrame(
            part["probabilities"][m][:N_IMAGES][:, columns].astype(np.float32), ids, classes
        )
        for m in (0, 3)
    }
    return frames, part["labels"][:N_IMAGES][:, columns]


@pytest.fixture(scope="module")
def fitted(data):
    """Fit a small stack, and predict every image."""
    frames, labels = data
    model = PairStacker(cv=3, random_state=0, n_jobs=1).fit(Stack(frames), labels)
    proba = pd.DataFrame(
        model.predict_proba(Stack(frames)), next(iter(frames.values())).index, model.classes_
    )
    return model, proba


def shuffled(frame, draw):
    """Give a frame's rows and columns in another order."""
    rows = draw(st.permutations(range(frame.shape[0])))
    columns = draw(st.permutations(range(frame.shape[1])))
    return frame.iloc[rows, columns]


@FEW
@given(draw=st.data())
def test_no_order_of_images_classes_or_models_changes_a_prediction(data, fitted, draw):
    """Columns are read by place: every image gets another class's probability."""
    frames, _ = data
    model, expected = fitted
    names = draw.draw(st.permutations(list(frames)))
    stack = Stack({name: shuffled(frames[name], draw.draw) for name in names})
    found = pd.DataFrame(model.predict_proba(stack), stack.image_ids, model.classes_)
    pd.testing.assert_frame_equal(found.loc[expected.index], expected, check_exact=True)


@FEW
@given(draw=st.data())
def test_an_image_is_predicted_alike_with_and_without_others(data, fitted, draw):
    """An image's label set depends on which images stand beside it."""
    frames, _ = data
    model, expected = fitted
    rows = draw.draw(st.lists(st.integers(0, N_IMAGES - 1), min_size=1, max_size=9, unique=True))
    stack = Stack({name: frame.iloc[rows] for name, frame in frames.items()})
    np.testing.assert_array_equal(model.predict_proba(stack), expected.iloc[rows].to_numpy())


@FEW
@given(draw=st.data())
def test_a_store_realigns_every_order(data, tmp_path_factory, draw):
    """Predictions of one image are stored for another."""
    frames, _ = data
    name, frame = next(iter(frames.items()))
    path = tmp_path_factory.mktemp("any") / "store"
    store = FeatureStore.create(path, image_ids=frame.index, classes=frame.columns)
    store.add_probabilities(name, shuffled(frame, draw.draw))
    pd.testing.assert_frame_equal(store.probabilities(name), frame, check_names=False)


WRONG = {
    "an id that is not there": (
        lambda f: f.rename(index={f.index[0]: "stranger"}),
        r"stranger",
    ),
    "an image less": (lambda f: f.iloc[1:], "missing"),
    "an image twice": (lambda f: f.iloc[[0, *range(len(f))]], r"twice|repeated|unique"),
    "a renamed class": (lambda f: f.rename(columns={f.columns[0]: "renamed"}), "renamed"),
    "a class less": (lambda f: f.iloc[:, 1:], "missing|lack"),
    "a class twice": (lambda f: f.iloc[:, [0, *range(f.shape[1])]], "twice|repeated|unique"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_aligned_is_refused_by_name(data, tmp_path, what):
    """Predictions without a partner are dropped or shifted, silently."""
    frames, _ = data
    change, message = WRONG[what]
    first, second = frames.values()
    with pytest.raises(ValueError, match=message):
        Stack({"a": first, "b": change(second)})
    store = FeatureStore.create(tmp_path / "s", image_ids=first.index, classes=first.columns)
    with pytest.raises(ValueError, match=message):
        store.add_probabilities("b", change(second))


def test_models_more_or_less_at_prediction(data, fitted, caplog):
    """A model that is gone is replaced by zeros; one that is new shifts the others."""
    frames, _ = data
    model, expected = fitted
    first, second = frames
    with pytest.raises(ValueError, match=f"X lacks the model {second!r} that fit used"):
        model.predict_proba(Stack({first: frames[first]}))
    with caplog.at_level(logging.WARNING):
        more = model.predict_proba(Stack({"new": frames[first] * 0, **frames}))
    np.testing.assert_array_equal(more, expected.to_numpy())
    assert "models that were not there in fit are left out: new" in caplog.text


def test_renamed_classes_at_prediction_are_refused(data, fitted):
    """Another vocabulary is read as the one of training."""
    frames, _ = data
    renamed = {name: frame.rename(columns=str.upper) for name, frame in frames.items()}
    with pytest.raises(ValueError, match=r"classes of fit; .* are missing or unknown, first"):
        fitted[0].predict_proba(Stack(renamed))
