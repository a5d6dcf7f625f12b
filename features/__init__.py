"""Second storey: out-of-fold predictions to pair rows, one row per (image, class)."""

from features.assemble import PairFeatures
from features.schema import LabelSpace, Stack
from features.store import FeatureStore

__all__ = ["FeatureStore", "LabelSpace", "PairFeatures", "Stack"]
