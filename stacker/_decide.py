"""Label sets for a table of probabilities from anywhere: the work behind ``stacker decide``."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from stacker.decision import FBetaDecision

__all__ = ["decide_file"]


def decide_file(
    probs: str | Path,
    *,
    labels: str | Path,
    out: str | Path,
    id_column: str = "image_id",
    labels_column: str = "labels",
    group_column: str = "split_group",
    **parameters: Any,
) -> dict[str, Any]:
    """Fit an `FBetaDecision` on the labelled images and write the sets of all images.

    Parameters
    ----------
    probs : path of a .parquet or .csv file
        One row an image: `id_column` and one column of probabilities per class. Those of labelled
        images must be out-of-fold.
    labels : path of a .csv or .parquet file
        `id_column` and `labels_column`, space-separated class names; images may be missing here,
        and an empty cell is an image without labels. A column named `group_column` keeps images
        together in cross-validation.
    out : path of a .csv file
        Written first under a temporary name, then renamed; same form as `labels`.
    id_column, labels_column, group_column : str
        Column names.
    **parameters
        Parameters of `FBetaDecision`; ``class_groups`` defaults to the part of the class names
        before ``"::"``.

    Returns
    -------
    dict
        ``strategy``, ``n_images``, ``n_labelled``, ``labels_per_image``, ``score`` on the labelled
        images (cross-validated for ``strategy="auto"``, None else) and ``cv_results``.

    Raises
    ------
    ValueError
        For ids that repeat, labels of unknown images or classes, or values outside [0, 1].
    """
    table = _read(probs, id_column)
    truth = _read(labels, id_column)
    missing = sorted(set(truth.index) - set(table.index))
    if missing:
        raise ValueError(
            f"{labels} has labels of {len(missing):,} images that {probs} lacks, first: "
            f"{missing[:3]}. Check the column {id_column!r} of both."
        )
    if labels_column not in truth.columns:
        raise ValueError(
            f"{labels} must have a column {labels_column!r}. Got {list(truth.columns)}."
        )
    names = np.array([str(name) for name in table.columns])
    parameters.setdefault("class_groups", [n.split("::")[0] if "::" in n else "" for n in names])
    Y = _indicator(truth[labels_column], names, str(labels))
    groups = truth[group_column].to_numpy() if group_column in truth.columns else None
    decision = FBetaDecision(**parameters)
    decision.fit(table.loc[truth.index].to_numpy(np.float32), Y, groups=groups)
    sets = decision.predict(table.to_numpy(np.float32))
    _write(sets, table.index, names, Path(out), id_column, labels_column)
    return _summary(decision, sets, len(truth))


def _read(path: str | Path, id_column: str) -> pd.DataFrame:
    path = Path(path)
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        frame = pd.read_csv(path, dtype={id_column: str})
    if id_column not in frame.columns:
        if frame.index.name != id_column:
            raise ValueError(
                f"{path} must have a column {id_column!r}. Got {list(frame.columns)[:5]}."
            )
        frame = frame.reset_index()
    frame[id_column] = frame[id_column].astype(str)
    repeated = frame[id_column][frame[id_column].duplicated()]
    if len(repeated):
        raise ValueError(
            f"{path} repeats {len(repeated):,} image ids, first: {repeated.iloc[0]!r}."
        )
    return frame.set_index(id_column)


def _indicator(cells: "pd.Series[Any]", names: NDArray[Any], path: str) -> sp.csr_array:
    """0/1 matrix of space-separated label names."""
    position = {name: c for c, name in enumerate(names)}
    words = [str(cell).split() if pd.notna(cell) else [] for cell in cells]
    unknown = sorted({word for row in words for word in row if word not in position})
    if unknown:
        raise ValueError(
            f"{path} names {len(unknown):,} classes without a column of probabilities, first: "
            f"{unknown[:3]}."
        )
    columns = [[position[word] for word in dict.fromkeys(row)] for row in words]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in columns])]).astype(np.int64)
    indices = np.array([c for row in columns for c in row], dtype=np.int64)
    ones = np.ones(len(indices), np.int8)
    return sp.csr_array((ones, indices, indptr), shape=(len(words), len(names)))


def _write(
    sets: NDArray[np.int8],
    ids: "pd.Index[Any]",
    names: NDArray[Any],
    out: Path,
    id_column: str,
    labels_column: str,
) -> None:
    chosen = [" ".join(names[np.flatnonzero(row)]) for row in sets]
    frame = pd.DataFrame({id_column: ids, labels_column: chosen})
    temporary = out.with_name(out.name + ".part")
    frame.to_csv(temporary, index=False)
    temporary.replace(out)


def _summary(decision: FBetaDecision, sets: NDArray[np.int8], n_labelled: int) -> dict[str, Any]:
    table = decision.cv_results_
    score = float(table["mean_score"][table["chosen"]][0]) if table else None
    return {
        "strategy": decision.strategy_,
        "n_images": len(sets),
        "n_labelled": n_labelled,
        "labels_per_image": float(sets.sum(axis=1).mean()) if len(sets) else 0.0,
        "score": score,
        "cv_results": table,
    }
