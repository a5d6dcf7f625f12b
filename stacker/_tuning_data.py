"""Binned rows shared by all trials, and the honest score of one fold under a trial's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features.numeric import logit, sigmoid
from stacker._base import fit_base
from stacker._column_rules import monotone_params
from stacker._proba import cells, join_rows, values_of
from stacker._rounds import SHRINKAGES
from stacker._tuning_space import Settings
from stacker.blend import weighted_log_loss
from stacker.boosters import BOOSTERS, Rows
from stacker.decision import FBetaDecision
from stacker.fbeta import fbeta_score

__all__ = ["TuningData"]

OBJECTIVES = ("fbeta", "log_loss")
# Share of the training images that a trial is first tried on.
SCREENED = 0.25
MOST_ROUNDS, PATIENCE = 600, 40
SCREEN_ROUNDS, SCREEN_PATIENCE = 300, 20
# A rule that is quick to fit, for each average; the final fit chooses its own.
QUICK_RULES = {"samples": "max_ratio", "macro": "class", "micro": "global"}


@dataclass
class _Allowed(Rows):
    """Rows of which only some are trained on; weights as they were binned."""

    allowed: NDArray[np.bool_] | None = None
    trained_weight: NDArray[np.float32] | None = None

    def thinned(self, random_state: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Give the rows to train on, and every row's weight."""
        assert self.allowed is not None
        assert self.trained_weight is not None
        return self.allowed, self.trained_weight


class TuningData:
    """One set of binned rows for every trial and fold.

    Parameters
    ----------
    model : PairStacker
        Prepared: features fitted, `rows` made from them.
    rows : Rows
    labels : csr_array of shape (n_images, n_classes)
    groups : array of shape (n_images,) or None
    base_proba : float32 array of shape (n_images, n_classes), or CSR array of a top-k stack
    objective : {"fbeta", "log_loss"}
    """

    def __init__(
        self,
        model: Any,
        rows: Rows,
        labels: csr_array,
        groups: NDArray[Any] | None,
        base_proba: Any,
        *,
        objective: str,
    ) -> None:
        self.model, self.rows, self.labels, self.objective = model, rows, labels, objective
        self.name: str = model.booster
        self.seed: int = model.random_state or 0
        self.n_folds = int(rows.fold.max()) + 1
        self.blocks = list(dict.fromkeys(column.block for column in model.columns_))
        self.block_of = np.array([column.block for column in model.columns_])
        # Bins must not drop columns that one trial's smaller leaves could use.
        unfiltered = {"feature_pre_filter": False} if self.name == "lightgbm" else {}
        self.binned = self._adapter(dict(model.booster_params or {}) | unfiltered).bin(rows)
        self.kept_rows, self.weight = rows.thinned(self.seed)
        rng = np.random.default_rng(self.seed)
        n_images = len(rows.stack)
        self.screened = rng.random(n_images) < SCREENED
        codes = np.arange(n_images) if groups is None else np.unique(groups, return_inverse=True)[1]
        # Halves of each held-out fold: rounds, shrinkage and rule from one, score from the other.
        self.half = (rng.random(int(codes.max()) + 1) < 0.5)[codes]
        self.place = _place_in_group(rows, model)
        self.bases = {model.base: (base_proba, rows.base, rows.start)}
        self.start_name = model.base

    def _adapter(self, params: dict[str, Any]) -> Any:
        params = monotone_params(params, self.model.columns_, self.name)
        extra = (self.model.device,) if self.name == "xgboost" else ()
        return BOOSTERS[self.name](params, self.model.n_jobs, self.seed, *extra)

    def score(self, settings: Settings, fold: int, *, screen: bool) -> float:
        """Score a fold held out, higher is better.

        Parameters
        ----------
        settings : Settings
        fold : int
        screen : bool
            Train on a quarter of the images only.
        """
        proba, base, start = self._base(settings.base)
        inside = self.place < settings.kept
        allowed = self.kept_rows & inside
        if screen:
            allowed &= self.screened[self.rows.image]
        rows = _Allowed(
            **{**vars(self.rows), "base": base, "start": start},
            allowed=allowed,
            trained_weight=self.weight,
        )
        params = self._masked(settings)
        fit = self._adapter(params).fit_fold(
            self.binned,
            rows,
            fold,
            rounds=SCREEN_ROUNDS if screen else MOST_ROUNDS,
            patience=SCREEN_PATIENCE if screen else PATIENCE,
        )
        held_out = np.flatnonzero(rows.row_fold == fold)
        # The base speaks for rows that this trial has no candidates for.
        ahead = np.where(inside[held_out], start[held_out] - base[held_out], 0)
        raw = np.where(inside[held_out], fit.raw, 0) + ahead
        return self._judge(held_out, base[held_out], raw, proba, fold)

    def _base(self, name: str | None) -> tuple[Any, Any, Any]:
        """Out-of-fold base, and the logits of base and start of every row."""
        if name not in self.bases:
            rows = self.rows
            _, base, start = fit_base(name, rows.stack, self.labels, rows.fold)
            at = cells(base, rows.image, rows.cls)
            logits = (logit(values_of(part)[at]) for part in (base, start))
            self.bases[name] = (base, *logits)
        found = self.bases[name]
        if name != self.start_name:
            self.start_name = name
            if self.name == "lightgbm":
                self.binned.set_init_score(found[2].astype(np.float64))
            else:
                self.binned.set_info(base_margin=found[2])
        return found

    def _masked(self, settings: Settings) -> dict[str, Any]:
        """Booster parameters with the columns of left-out blocks switched off."""
        params = dict(settings.booster_params)
        used = ~np.isin(self.block_of, settings.without)
        if self.name == "lightgbm":
            if not used.all():
                params["feature_contri"] = used.astype(float).tolist()
            return params
        self.binned.set_info(feature_weights=used.astype(np.float32))
        # The share of columns drawn is counted over those that are left.
        params["colsample_bytree"] = params.get("colsample_bytree", 0.4) * float(used.mean())
        return params

    def _judge(
        self,
        held_out: NDArray[np.intp],
        base: NDArray[np.float32],
        raw: NDArray[np.float32],
        proba: Any,
        fold: int,
    ) -> float:
        """Score each half of a fold with what the other half chose."""
        rows = self.rows
        image = rows.image[held_out]
        second = self.half[image]
        out = proba.copy()
        for half in (False, True):
            chosen = _best_moment(base, raw, rows.label[held_out], second != half)
            own = second == half
            moved = base[own] + np.float32(chosen[1]) * raw[chosen[0]][own]
            values_of(out)[cells(out, image[own], rows.cls[held_out][own])] = sigmoid(moved)
        images = np.flatnonzero(rows.fold == fold)
        if self.objective == "log_loss":
            moved = logit(values_of(out)[cells(out, image, rows.cls[held_out])])
            loss = weighted_log_loss(moved, rows.label[held_out])
            return -loss * len(held_out) / len(images)
        return self._fbeta(out, images)

    def _fbeta(self, out: Any, images: NDArray[np.intp]) -> float:
        half = self.half[images]
        both = half.any() and not half.all()
        sets, places = [], []
        for own in (half, ~half) if both else (np.ones(len(images), dtype=bool),):
            learn = images[~own] if both else images
            rule = self._rule().fit(out[learn], self.labels[learn])
            sets.append(rule.predict(out[images[own]]))
            places.append(np.flatnonzero(own))
        together = join_rows(sets, places)
        return fbeta_score(self.labels[images], together, self.model.beta, self.model.average)

    def _rule(self) -> FBetaDecision:
        if self.model.decision != "auto" and self.model.decision.strategy != "auto":
            return FBetaDecision(**self.model.decision.get_params())
        return FBetaDecision(
            beta=self.model.beta,
            average=self.model.average,
            strategy=QUICK_RULES[self.model.average],
            class_groups=self.model.class_group_,
            random_state=self.seed,
        )


def _best_moment(
    base: NDArray[np.float32],
    raw: NDArray[np.float32],
    label: NDArray[np.float32],
    inside: NDArray[np.bool_],
) -> tuple[int, float]:
    """Snapshot and shrinkage of the lowest log loss on some rows."""
    if not inside.any():
        return len(raw) - 1, 1.0
    base, raw, label = base[inside], raw[:, inside], label[inside]
    moment = int(np.argmin([weighted_log_loss(base + own, label) for own in raw]))
    losses = [weighted_log_loss(base + np.float32(s) * raw[moment], label) for s in SHRINKAGES]
    return moment, float(SHRINKAGES[int(np.argmin(losses))])


def _place_in_group(rows: Rows, model: Any) -> NDArray[np.float32]:
    """Place of each row among its image's candidates of the class group, in [0, 1)."""
    codes = model.seen_["space"].group_codes[rows.cls].astype(np.int64)
    n_groups = int(model.seen_["space"].group_codes.max()) + 1
    key = rows.image.astype(np.int64) * n_groups + codes
    # Best first within image and group: a stable sort by the blend, then by key.
    order = np.lexsort((-rows.start, key))
    starts = np.r_[0, np.flatnonzero(np.diff(key[order])) + 1]
    sizes = np.diff(np.r_[starts, len(key)])
    place = np.empty(len(key), dtype=np.float32)
    most = np.asarray(model.features_.per_group_, dtype=np.float32)[codes[order]]
    place[order] = (np.arange(len(key)) - np.repeat(starts, sizes)) / np.maximum(most, 1)
    return place
