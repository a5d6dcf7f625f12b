"""Saved models: the same predictions in a new process, no pickle, tampering refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from features import FeatureStore
from features._seal import file_sha256
from stacker import PairStacker
from stacker.persistence import read_folder, write_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, slice_stack, slice_labels):
    """A fitted model of both boosters and the folder it was saved to."""
    model = PairStacker(
        ("lightgbm", "xgboost"),
        cv=3,
        random_state=0,
        booster_params={"learning_rate": 0.2},
        n_jobs=2,
    ).fit(slice_stack, slice_labels)
    path = tmp_path_factory.mktemp("models") / "model"
    model.save(path)
    return model, path


PREDICT = """
import sys
import numpy as np
from features import FeatureStore
from features._seal import file_sha256
from stacker import PairStacker
np.save(sys.argv[2], PairStacker.load(sys.argv[1]).predict_proba(FeatureStore.open(sys.argv[3])))
"""


def test_a_new_process_predicts_the_same_bits(saved, slice_stack, tmp_path):
    """Nothing that prediction needs lives only in the process that fitted."""
    model, path = saved
    out, store = tmp_path / "proba.npy", tmp_path / "store"
    FeatureStore.from_arrays(
        store,
        image_ids=slice_stack.image_ids,
        classes=slice_stack.classes,
        probabilities=slice_stack.probabilities,
        embeddings=slice_stack.embeddings,
        imagenet_logits=slice_stack.imagenet_logits,
        image_stats=slice_stack.image_stats,
    )
    subprocess.run([sys.executable, "-c", PREDICT, path, out, store], check=True)
    np.testing.assert_array_equal(np.load(out), model.predict_proba(slice_stack))


def test_loaded_model_keeps_what_fit_found(saved):
    """Scores, names and importances survive, so that a report can be made later."""
    model, path = saved
    loaded = PairStacker.load(path)
    for key, values in model.decision_.cv_results_.items():
        np.testing.assert_array_equal(loaded.decision_.cv_results_[key], values)
    assert len(loaded.decision_.cv_results_["strategy"]) > 2
    assert loaded.oof_score_ == model.oof_score_
    assert loaded.feature_names_ == model.feature_names_
    # LightGBM writes its gains with few digits.
    np.testing.assert_allclose(loaded.feature_importances_, model.feature_importances_, rtol=1e-4)
    np.testing.assert_array_equal(loaded.oof_proba_, model.oof_proba_)
    assert loaded.get_params()["booster"] == ("lightgbm", "xgboost")
    assert loaded.libraries_ == model.libraries_
    assert {"lightgbm", "python"} <= loaded.libraries_.keys()


def test_the_folder_holds_no_pickle(saved):
    """Only text, JSON and plain arrays: opening a model runs nothing."""
    _, path = saved
    for file in path.iterdir():
        assert file.suffix in {".json", ".npy", ".txt"}
        assert not file.read_bytes().startswith(b"\x80")
        if file.suffix == ".npy":
            np.load(file, allow_pickle=False)


@pytest.mark.parametrize("name", ["model.json", "booster-lightgbm.txt", "array-0000.npy"])
def test_a_changed_byte_is_refused(saved, name, tmp_path):
    """A model that someone edited, or a disk damaged, does not load."""
    copy = tmp_path / "copy"
    shutil.copytree(saved[1], copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} was changed"):
        PairStacker.load(copy)


def test_missing_and_unknown_files_are_refused(saved, tmp_path):
    """A file added to, or lost from, the folder is named."""
    copy = tmp_path / "copy"
    shutil.copytree(saved[1], copy)
    (copy / "extra.txt").write_text("?")
    with pytest.raises(ValueError, match=r"extra\.txt"):
        PairStacker.load(copy)
    with pytest.raises(FileNotFoundError, match="holds no pairstack model"):
        PairStacker.load(tmp_path)


def test_another_version_is_refused(tmp_path):
    """A folder of another format or version says so instead of failing somewhere inside."""
    write_folder(tmp_path / "m", {"a": 1}, {})
    content = json.loads((tmp_path / "m" / "model.json").read_text())
    content["version"] = 99
    (tmp_path / "m" / "model.json").write_text(json.dumps(content))
    sums = json.loads((tmp_path / "m" / "checksums.json").read_text())
    sums["model.json"] = file_sha256(tmp_path / "m" / "model.json")
    (tmp_path / "m" / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="version 99"):
        read_folder(tmp_path / "m")


def test_an_existing_folder_is_not_overwritten(saved):
    """Saving onto something else would lose it."""
    model, path = saved
    with pytest.raises(FileExistsError, match="exists already"):
        model.save(path)


def test_a_failed_save_leaves_nothing(tmp_path):
    """A half-written model must not lie where a whole one is expected."""
    with pytest.raises(TypeError, match="must not hold objects"):
        write_folder(tmp_path / "m", {"bad": np.array([object()])}, {})
    assert list(tmp_path.iterdir()) == []
