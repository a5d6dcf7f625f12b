"""Third storey: pair rows to label sets, by boosting on a calibrated blend and F-beta decisions."""

from stacker._evaluate import evaluate
from stacker.decision import FBetaDecision
from stacker.estimator import PairStacker
from stacker.fbeta import expected_fbeta_sets, fbeta_score
from stacker.multilabel import StackingMultilabelClassifier
from stacker.submission import write_submission

__all__ = [
    "FBetaDecision",
    "PairStacker",
    "StackingMultilabelClassifier",
    "evaluate",
    "expected_fbeta_sets",
    "fbeta_score",
    "write_submission",
]
