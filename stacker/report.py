"""One self-contained HTML page about a fitted stack: scores, curves, importance, images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from features._console import versions
from features.schema import Stack
from stacker._output import write_text
from stacker._report_checks import checks_section
from stacker._report_held_out import held_out_sections, summary
from stacker._report_training import (
    block_importance,
    decision_rules,
    model_facts,
    threshold_curves,
    top_features,
)
from stacker._tuning_report import tuning_section
from stacker.evaluation import Predictions, ScoreTable

LIBRARIES = (
    *("numpy", "scipy", "pandas", "pyarrow", "zarr", "numba"),
    *("scikit-learn", "lightgbm", "xgboost", "optuna"),
)

__all__ = ["HeldOut", "library_versions", "render_report", "write_report"]


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that no method was fitted on, and what each method says about them.

    Attributes
    ----------
    image_ids : str array of shape (n_images,)
    labels : csr_array of shape (n_images, n_classes)
    methods : dict of name to Predictions, "stack" among them
    table : ScoreTable
        Of `methods`, from `stacker.evaluation.score_methods`.
    stack : Stack, optional
        What the model predicts these images from: adds why labels changed, and the search for
        near-duplicates among the training images.
    groups : array-like of shape (n_images,), optional
        Split groups, for intervals.

    Examples
    --------
    >>> from stacker.evaluation import score_methods
    >>> Y = csr_array(np.eye(4, dtype=np.int8))
    >>> sets = {"samples": Y.toarray()}
    >>> methods = {
    ...     "mean": Predictions("Mean", Y.toarray() * 0.4, sets, is_blend=True),
    ...     "stack": Predictions("Stack", Y.toarray() * 0.9, sets),
    ... }
    >>> table = score_methods(Y, methods, averages=["samples"], n=10)
    >>> HeldOut(np.array(list("abcd")), Y, methods, table).table.n_images
    4
    """

    image_ids: NDArray[np.str_]
    labels: csr_array
    methods: dict[str, Predictions]
    table: ScoreTable
    stack: Stack | None = None
    groups: ArrayLike | None = None


def write_report(path: Path | str, model: Any, *, force: bool = False, **content: Any) -> None:
    """Render the report of a fitted model and write it, whole or not at all.

    Parameters
    ----------
    path : path
        The HTML file; refused when it exists, unless `force`.
    model : fitted PairStacker
    **content
        As for `render_report`.

    Raises
    ------
    FileExistsError
        If the file exists and `force` is False.

    Examples
    --------
    >>> import tempfile
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> path = Path(tempfile.mkdtemp()) / "report.html"
    >>> write_report(path, model)
    >>> path.read_text(encoding="utf-8")[:15].lower()
    '<!doctype html>'
    """
    write_text(Path(path), render_report(model, **content), force=force)


def render_report(
    model: Any,
    *,
    train_labels: Any = None,
    train: Stack | None = None,
    held_out: HeldOut | None = None,
    read_image: Callable[[str], bytes | None] | None = None,
    title: str = "pairstack report",
    command: str = "",
    about: Sequence[tuple[str, str]] = (),
) -> str:
    """Render the report of a fitted model as one HTML page that needs nothing else.

    Parameters
    ----------
    model : fitted PairStacker
    train_labels : 0/1 matrix of shape (n_images, n_classes), optional
        Labels of the rows of ``model.oof_proba_``; without them there are no threshold curves.
    train : Stack, optional
        These rows; with `train_labels` it adds the data checks.
    held_out : HeldOut, optional
        Gives the table with intervals, calibration, the breakdowns and the images.
    read_image : callable, optional
        Gives the file of an image id, or None.
    title, command : str
        Headline; the command that made the page.
    about : sequence of (name, value)
        Further facts for the last section.

    Returns
    -------
    str
        The page. Every string that came from a user is escaped.

    Examples
    --------
    >>> from stacker import PairStacker
    >>> rng = np.random.default_rng(0)
    >>> Y = (rng.random((60, 4)) < 0.3).astype(np.int8)
    >>> X = {m: np.clip(0.6 * Y + 0.4 * rng.random(Y.shape), 0, 1) for m in "ab"}
    >>> model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1).fit(X, Y)
    >>> "pairstack report" in render_report(model)
    True
    """
    page = _environment().get_template("report.html.jinja")
    beta = float(model.beta)
    return page.render(
        title=title,
        command=command,
        beta=f"{beta:g}",
        summary=summary(held_out, beta),
        training=_training_scores(model),
        curves=threshold_curves(model, train_labels),
        rules=decision_rules(model),
        blocks=block_importance(model),
        top_features=top_features(model),
        tuning=tuning_section(getattr(model, "trials_", None)),
        checks=checks_section(model, train, train_labels, held_out, read_image),
        about=[*model_facts(model), *about],
        versions=_versions(model),
        **held_out_sections(model, held_out, train_labels, read_image, beta),
    )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a result depends on.

    Examples
    --------
    >>> list(library_versions())[:2]
    ['pairstack', 'python']
    """
    return versions(*LIBRARIES)


def _versions(model: Any) -> dict[str, str]:
    """Versions that the page was made with, and before them those of `fit` where they differ."""
    fitted = getattr(model, "libraries_", {})
    return {
        name: now if fitted.get(name, now) == now else f"{fitted[name]}; this page: {now}"
        for name, now in library_versions().items()
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stacker", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["signed"] = lambda value: f"{value:+.4f}"
    environment.filters["score"] = lambda v: "–" if v is None or np.isnan(v) else f"{v:.4f}"
    environment.filters["count"] = lambda value: f"{int(value):,}"
    return environment


def _breakable(name: str) -> Markup:
    """Escape a name and let it wrap after its separators."""
    return Markup("<wbr>").join(re.findall(r"[^:._+/]+[:._+/]*|[:._+/]+", str(name)))


def _training_scores(model: Any) -> dict[str, float]:
    return {"stack": float(model.oof_score_), "base": float(model.base_score_)}
