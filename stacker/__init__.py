"""Third storey: pair rows to label sets, by boosting on a calibrated blend and F-beta decisions."""

from stacker._evaluate import evaluate
from stacker.decision import FBetaDecision
from stacker.estimator import PairStacker
from stacker.fbeta import expected_fbeta_sets, fbeta_score

__all__ = ["FBetaDecision", "PairStacker", "evaluate", "expected_fbeta_sets", "fbeta_score"]
