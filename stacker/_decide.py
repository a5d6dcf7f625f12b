"""Label sets for a table of probabilities from anywhere: the work behind ``stacker decide``."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from features._checks import check_probabilities
from features._tables import CsvReader, ParquetReader, numbers
from stacker._output import refuse_other_than_csv
from stacker.decision import FBetaDecision
from stacker.submission import write_submission

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
        For ids that repeat, labels of unknown images or classes, values outside [0, 1], and class
        names with spaces, which nobody could tell apart in the output.
    """
    refuse_other_than_csv(Path(out))
    table = numbers(_read(probs, id_column), probs)
    truth = _read(labels, id_column, text=(labels_column, group_column))
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
    names, ids = (np.array(part.tolist(), dtype=np.str_) for part in (table.columns, table.index))
    check_probabilities(table.to_numpy(), model=Path(probs).name, image_ids=ids, classes=names)
    parameters.setdefault("class_groups", [n.split("::")[0] if "::" in n else "" for n in names])
    Y = _indicator(truth[labels_column], names, str(labels))
    groups = truth[group_column].to_numpy() if group_column in truth.columns else None
    decision = FBetaDecision(**parameters)
    decision.fit(table.loc[truth.index].to_numpy(), Y, groups=groups)
    sets = decision.predict(table.to_numpy())
    write_submission(
        out,
        sets,
        image_ids=ids,
        classes=names,
        id_column=id_column,
        label_column=labels_column,
        force=True,
    )
    return _summary(decision, sets, len(truth))


def _read(path: str | Path, id_column: str, text: tuple[str, ...] = ()) -> pd.DataFrame:
    reader = ParquetReader if Path(path).suffix == ".parquet" else CsvReader
    return reader(id_column)(path, text=text)


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
