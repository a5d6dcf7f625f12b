"""The public API as a user's type checker sees it, from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USER = """
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features import FeatureStore, LabelSpace, PairFeatures, Stack
from features.importing import import_predictions, read_predictions
from stacker import (
    FBetaDecision,
    PairStacker,
    StackingMultilabelClassifier,
    evaluate,
    expected_fbeta_sets,
    fbeta_score,
    write_submission,
)
from stacker.adapt import PriorShift, TargetAdapter
from stacker.calibration import ProbabilityCalibrator
from stacker.tuning import tune

probs = np.full((4, 3), 0.5, dtype=np.float32)
Y = np.eye(4, 3, dtype=np.int8)
stack: Stack = Stack({"a": probs}, classes=["x", "y", "z"])
space: LabelSpace = stack.label_space
model: PairStacker = PairStacker(cv=3, random_state=0).fit(stack, Y, groups=[0, 1, 2, 3])
proba: NDArray[np.float32] = model.predict_proba(stack)
labels: list[list[str]] = model.predict_labels(stack)
score: float = model.score(stack, Y)
tuned: PairStacker = tune(model, stack, Y, n_trials=2)
loaded: PairStacker = PairStacker.load(Path("model"))
decision: FBetaDecision = FBetaDecision(strategy="expected").fit(probs, Y)
f2: float = fbeta_score(Y, decision.predict(probs), beta=2.0, average="macro")
exact = expected_fbeta_sets(probs)
any_model = StackingMultilabelClassifier([("a", model)], cv=3).fit(probs, Y, groups=[0, 1, 2, 3])
names: dict[str, object] = any_model.named_estimators_
path: Path = write_submission("s.csv", labels, image_ids=["i", "j", "k", "l"])
store: FeatureStore = import_predictions("store", {"a": "a.npy"}, "labels.csv")
tables = read_predictions("a.npy")
calibrated = ProbabilityCalibrator().fit(probs, Y).transform(probs)
shift: PriorShift = PriorShift().fit(probs, Y, probs)
adapter: TargetAdapter = TargetAdapter().fit(probs, Y, probs, Y)
report = evaluate(model, stack, Y).to_dict()
features: PairFeatures = PairFeatures(blocks=("logits",))
"""

WRONG = """
from stacker import FBetaDecision, PairStacker
from stacker.tuning import tune

PairStacker(booster=3)
FBetaDecision(beta="two")
x: int = PairStacker().predict_labels([])
tune(3, [])
"""


def check(tmp_path, code):
    """Run ``mypy --strict`` over a script that stands outside the repository."""
    script = tmp_path / "user.py"
    script.write_text(code, encoding="utf-8")
    quiet = "[mypy]\nstrict = True\n[mypy-sklearn.*,scipy.*,numba.*,zarr.*,pyarrow.*,lightgbm.*,"
    quiet += (
        "xgboost.*,threadpoolctl.*,h5py.*,distributed.*,dask.*]\nignore_missing_imports = True\n"
    )
    (tmp_path / "mypy.ini").write_text(quiet, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "user.py"]
    # mypy cannot follow the import hook of an editable install.
    env = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("user.py")]


@pytest.mark.parametrize("package", ["cnn_extract", "features", "stacker"])
def test_every_package_says_that_it_is_typed(package):
    """Type checkers ignore the annotations of a package without the mark."""
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.slow
def test_a_users_script_passes_mypy_strict_and_mistakes_are_found(tmp_path):
    """Types are not shipped, or are so loose that a wrong argument goes unseen."""
    pytest.importorskip("mypy")
    assert check(tmp_path, USER) == []
    errors = check(tmp_path, WRONG)
    assert len(errors) == 4, errors
