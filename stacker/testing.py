"""What scikit-learn's estimator checks cannot ask of estimators that take probabilities.

Pass `EXPECTED_FAILED_CHECKS` to ``check_estimator(..., expected_failed_checks=...)``. The checks
listed feed values outside [0, 1], which these estimators refuse: they would be logits by mistake.
`StackingMultilabelClassifier` takes any features; one check wants label sets cut at 0.5.
"""

__all__ = ["EXPECTED_FAILED_CHECKS"]

OUTSIDE = "feeds X outside [0, 1]; probabilities are refused there"
NOT_AT_HALF = "wants label sets cut at probability 0.5; these maximise F-beta"

_ANY_ESTIMATOR = (
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_estimators_dtypes",
    "check_estimators_fit_returns_self",
    "check_estimators_overwrite_params",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_pipeline_consistency",
    "check_readonly_memmap_input",
)
_CLASSIFIER = (
    "check_classifier_data_not_an_array",
    "check_classifier_multioutput",
    "check_classifiers_classes",
    "check_classifiers_train",
)
_TRANSFORMER = (
    "check_transformer_data_not_an_array",
    "check_transformer_general",
    "check_transformer_preserve_dtypes",
)

EXPECTED_FAILED_CHECKS: dict[str, dict[str, str]] = {
    "FBetaDecision": dict.fromkeys(_ANY_ESTIMATOR + _CLASSIFIER, OUTSIDE),
    "ProbabilityCalibrator": dict.fromkeys(_ANY_ESTIMATOR + _TRANSFORMER, OUTSIDE),
    # Only with a PairStacker on top.
    "StackingMultilabelClassifier": {"check_classifier_multioutput": NOT_AT_HALF},
}
