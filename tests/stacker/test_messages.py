"""What each refusal of the stack says; the longer ones are tested beside what they guard."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_array

from features import FeatureStore, Stack
from features._seal import file_sha256
from stacker import FBetaDecision, PairStacker, StackingMultilabelClassifier, write_submission
from stacker._align import read_labels, read_stack
from stacker._evaluate import labels_for
from stacker._inputs import check_beta, check_pairs
from stacker._level_one import read_probabilities
from stacker._proba import cells
from stacker._splits import group_codes, make_splits
from stacker.adapt import PriorShift
from stacker.datasets._subset import stratified_subset
from stacker.demo import DemoSettings, run_demo
from stacker.explain import _one_image
from stacker.fold_models import fold_stacks
from stacker.persistence import read_folder, write_folder
from stacker.verify import verify

TWO = np.full((4, 2), 0.5, np.float32)
STACK = Stack({"m": TWO}, classes=["a", "b"])
SEEN = SimpleNamespace(seen_={"models": ["m"], "classes": ["a", "b"]})


def rule():
    return FBetaDecision(strategy="global").fit(TWO, np.eye(4, 2, dtype=np.int8))


def shift():
    return PriorShift().fit(TWO, None, proba_target=TWO)


CALLS = {
    "other classes": (
        lambda: read_stack(STACK, ["b", "a"]),
        r"classes= must be the stack's own classes, in order.*\['a', 'b'\].*Leave classes= out",
    ),
    "negative beta": (
        lambda: check_beta(-1.0),
        r"'beta' parameter must be a finite number above 0. Got -1\.0",
    ),
    "no images": (
        lambda: check_pairs(TWO[:0], np.zeros((0, 2)), owner="X"),
        r"Found array with 0 sample\(s\) \(shape=\(0, 2\)\) while a minimum of 1 is required",
    ),
    "no classes": (
        lambda: check_pairs(TWO[:, :0], np.zeros((4, 0)), owner="X"),
        r"0 feature\(s\) \(shape=\(4, 0\)\) while a minimum of 1 is required",
    ),
    "complex": (
        lambda: check_pairs(TWO, np.ones(4, complex), owner="X"),
        "Y must be real. Complex data not supported",
    ),
    "one column": (
        lambda: read_probabilities(
            SimpleNamespace(predict=lambda X: np.zeros((4, 3)), classes_=[0, 1]),
            TWO,
            method="predict",
            y_ndim=2,
            n_classes=2,
        ),
        r"SimpleNamespace.predict must give one column for each of the 2 classes.*\(4, 3\)",
    ),
    "not stored": (
        lambda: cells(csr_array(np.eye(2, dtype=np.float32)), np.array([1]), np.array([0])),
        "no model holds class 0 of image 1",
    ),
    "groups": (
        lambda: group_codes(["a", "b"], 4),
        r"groups must have one entry per image: shape \(4,\), however: groups.shape=\(2,\)",
    ),
    "one fold": (
        lambda: make_splits(1, TWO, csr_array(TWO), np.arange(4), 0),
        r"'cv' parameter must be an int of at least 2. Got 1\.",
    ),
    "prior shift": (
        lambda: shift().transform(np.full((4, 3), 0.5)),
        "X has 3 features, but PriorShift is expecting 2 features as input",
    ),
    "subset": (
        lambda: stratified_subset(csr_array(np.eye(4)), list("abcd"), 5),
        "n_images must be between 1 and the number of images there are, 4. Got 5 instead",
    ),
    "position": (
        lambda: _one_image(SEEN, STACK, 4),
        r"image must be a position below 4. Got 4\.",
    ),
    "image": (
        lambda: _one_image(SEEN, STACK, "z"),
        r"X has no image 'z'; its first images are \['0', '1', '2'\]",
    ),
}


@pytest.fixture(autouse=True)
def _as_given(monkeypatch):
    """The stack is read as it is: what these tests ask for comes after it."""
    monkeypatch.setattr("stacker.explain.read_new", lambda X, seen: X)


@pytest.mark.parametrize("what", CALLS)
def test_the_refusal_names_the_rule_and_the_value(what):
    """A message that leaves out the value sends its reader to the debugger."""
    call, message = CALLS[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_only_calibrated_rules_have_a_calibrator():
    """None, or the calibrator of an earlier fit."""
    with pytest.raises(AttributeError, match="exists for strategy 'expected' only; this is 'glob"):
        rule().calibrator_  # noqa: B018


def test_label_sets_are_scored_without_weights():
    """Weights that are taken and left out change no score, and nobody notices."""
    model = StackingMultilabelClassifier([])
    model.final_estimator_, model.one_label_ = rule(), False
    with pytest.raises(ValueError, match="sample_weight must be None: F-beta of label sets"):
        model.score(TWO, TWO, sample_weight=np.ones(4))


def test_a_demo_of_a_few_images_is_refused_before_it_begins(tmp_path):
    """Two minutes of extraction end in a split without positives."""
    with pytest.raises(ValueError, match="n_images must be at least 100, or too few classes"):
        run_demo(tmp_path / "demo", DemoSettings(n_images=10))
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def store(tmp_path):
    """Make a store of two models and no labels."""
    given = {"image_ids": list("ijkl"), "classes": ["a", "b"], "probabilities": {"m": TWO}}
    return FeatureStore.from_arrays(tmp_path / "store", **given)


def test_a_store_without_labels_trains_nothing(store):
    """An empty training set ends deep inside of the folds."""
    with pytest.raises(ValueError, match=r"store .*store has no labelled image to fit on"):
        read_labels(store, None, store.to_stack())


def test_a_store_of_other_classes_is_not_evaluated(store):
    """A class that is missing would count as one that no image has."""
    model = SimpleNamespace(classes_=np.array(["a", "c"]))
    with pytest.raises(ValueError, match=r"1 of the model's classes are not in .*\['c'\]"):
        labels_for(model, store)


def test_dask_takes_a_store_of_the_models_classes_in_order_alone(store, tmp_path):
    """Workers read rows by position: each class would get its neighbour's probabilities."""
    pytest.importorskip("distributed")
    from stacker._dask_predict import write_predictions

    model = SimpleNamespace(classes_=np.array(["b", "a"]))
    with pytest.raises(ValueError, match="on Dask the store must have the model's classes in the"):
        write_predictions(model, store, tmp_path / "out", "current")
    assert not (tmp_path / "out").exists()


def test_models_of_another_number_of_folds_are_not_mixed(store):
    """The third fold of one model beside the first of another."""
    store.add_probabilities("n", TWO)
    store.add_fold_probabilities("m", np.full((2, 4, 2), 0.5))
    store.add_fold_probabilities("n", np.full((3, 4, 2), 0.5))
    with pytest.raises(ValueError, match=r"must have the same number of fold models. Got.*'n': 3"):
        fold_stacks(FeatureStore.open(store.path))


def test_nothing_is_nothing_to_verify(tmp_path):
    """A misspelt path is reported intact."""
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*gone"):
        verify(tmp_path / "gone")


# Model folders ----------------------------------------------------------------------------------


def resealed(folder, text):
    """Write model.json anew, with checksums that fit."""
    (folder / "model.json").write_text(text)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["model.json"] = file_sha256(folder / "model.json")
    (folder / "checksums.json").write_text(json.dumps(sums))


@pytest.fixture
def folder(tmp_path):
    """Write a model folder without a model."""
    write_folder(tmp_path / "model", {"name": "x"}, {})
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "model.json is damaged: it is no JSON object"),
        ('{"format": "x", "version": 9}', "must hold a .* of version .* Got format 'x', version 9"),
    ],
)
def test_another_model_file_is_refused(folder, text, message):
    """A folder of another program, or of a later version, is read half."""
    resealed(folder, text)
    with pytest.raises(ValueError, match=message):
        read_folder(folder)


def test_a_model_folder_holds_its_files_itself(folder, tmp_path):
    """A link would read any file of the machine into the model."""
    shutil.move(folder / "model.json", tmp_path / "elsewhere.json")
    (folder / "model.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"must hold its files itself; 'model.json' is a link"):
        read_folder(folder)


def test_a_folder_of_another_model_is_refused(folder):
    """A KeyError from the middle of loading says nothing about the folder."""
    with pytest.raises(ValueError, match=r"holds no fitted PairStacker: .* Give one that PairStac"):
        PairStacker.load(folder)


# Submissions ------------------------------------------------------------------------------------

SETS = [["a"], ["b"]]


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        (None, {"form": "long"}, r"form must be of \('joined', 'wide'\). Got 'long' instead"),
        (None, {"form": "wide", "classes": ["a", "c"]}, "'b' is no class of the submission"),
        ("id\ni\nj\n", {}, r"must have an id column and more; it has \['id'\]"),
        ("id,labels\ni,\nj,\n", {"image_ids": ["i", "i"]}, "image id 'i' stands twice"),
        (
            "id,a,c\ni,0,0\nj,0,0\n",
            {"classes": ["a", "b"]},
            r"the sample has 2 class columns, the label sets 2; 2 are in one only.*\['b', 'c'\]",
        ),
    ],
)
def test_a_submission_that_would_be_refused_is_not_written(tmp_path, sample, options, message):
    """One of five submissions a day is lost on a wrong header."""
    given = {"image_ids": ["i", "j"]} | options
    if sample is not None:
        (tmp_path / "sample.csv").write_text(sample)
        given["like"] = tmp_path / "sample.csv"
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "s.csv", SETS, **given)
    assert not (tmp_path / "s.csv").exists()
