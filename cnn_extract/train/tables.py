"""Tables beside the labels: images to drop or replay, pseudo-labels, class parents, teachers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from cnn_extract.tables import Labels, first_few, read_labels, read_metadata
from cnn_extract.train.samples import Samples

__all__ = [
    "add_pseudo_labels",
    "read_image_list",
    "read_parents",
    "read_teacher",
    "sha256_of",
]


def read_image_list(path: Path, image_ids: Sequence[str], id_column: str) -> NDArray[np.bool_]:
    r"""Which images a table names, bool (n_images,): images to drop (A5) or to replay (A6).

    Raises
    ------
    FileNotFoundError, ValueError
        When the table is not there, has no id column, or names images that are not there.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "drop.csv").write_text("image_id\nb\n")
    ...     read_image_list(Path(folder, "drop.csv"), ["a", "b"], "image_id").tolist()
    [False, True]
    """
    names = read_metadata(path, id_column=id_column).index
    absent = sorted(set(names) - set(image_ids))
    if absent:
        raise ValueError(
            f"{path} must name images that are there; {len(absent):,} are not, first: "
            f"{first_few(absent)}"
        )
    return np.isin(np.asarray(image_ids, dtype=object), np.asarray(names, dtype=object))


def add_pseudo_labels(
    samples: Samples,
    path: Path,
    image_ids: Sequence[str],
    labels: Labels,
    *,
    id_column: str,
    label_column: str,
) -> Samples:
    r"""Put the pseudo-labelled images behind the samples (A7).

    Parameters
    ----------
    samples : Samples
        The labelled images.
    path : Path
        CSV: image_id, labels and, where it has one, weight.
    image_ids : sequence of str
    labels : Labels
        The true ones.
    id_column, label_column : str

    Raises
    ------
    ValueError
        For images that are not there or are labelled already, unknown classes, weights that are
        no positive numbers.

    Examples
    --------
    >>> import tempfile
    >>> known = Labels("labels.csv", ("a",), (("cat",),), ("cat",))
    >>> labels = sparse.csr_array(np.array([[1]], dtype=np.int8))
    >>> samples = Samples(np.array([0]), labels, np.ones(1, np.float32), np.zeros(1, bool))
    >>> columns = {"id_column": "image_id", "label_column": "labels"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "pseudo.csv")
    ...     _ = path.write_text("image_id,labels,weight\nb,cat,0.5\n")
    ...     add_pseudo_labels(samples, path, ["a", "b"], known, **columns).weights.tolist()
    [1.0, 0.5]
    """
    pseudo = read_labels(path, id_column=id_column, label_column=label_column)
    pseudo.refuse_unknown(image_ids, "the images")
    _refuse_known(pseudo, labels, path)
    wanted = Labels(pseudo.path, pseudo.image_ids, pseudo.lists, labels.classes)
    matrix, named = wanted.aligned(image_ids)
    rows = np.flatnonzero(named)
    weights = _weights(path, [image_ids[int(k)] for k in rows], id_column)
    return Samples(
        rows=np.concatenate([samples.rows, rows]),
        labels=sparse.csr_array(sparse.vstack([samples.labels, matrix[rows]])),
        weights=np.concatenate([samples.weights, weights]),
        listed_hard=np.concatenate([samples.listed_hard, np.zeros(len(rows), dtype=bool)]),
        teacher=_longer(samples.teacher, len(rows)),
    )


def _refuse_known(pseudo: Labels, labels: Labels, path: Path) -> None:
    twice = sorted(set(pseudo.image_ids) & set(labels.image_ids))
    if twice:
        raise ValueError(
            f"{path} must name images without labels; {len(twice):,} have some in {labels.path}, "
            f"first: {first_few(twice)}"
        )
    unknown = sorted(set(pseudo.classes) - set(labels.classes))
    if unknown:
        raise ValueError(
            f"{path} must use the classes of {labels.path}; {len(unknown):,} are unknown, first: "
            f"{first_few(unknown)}"
        )


def _weights(path: Path, image_ids: Sequence[str], id_column: str) -> NDArray[np.float32]:
    frame = read_metadata(path, id_column=id_column)
    if "weight" not in frame:
        return np.ones(len(image_ids), dtype=np.float32)
    column: Any = pd.to_numeric(frame["weight"], errors="coerce").loc[list(image_ids)]
    bad = column.index[~(column > 0) | ~np.isfinite(column)]
    if len(bad):
        raise ValueError(
            f"{path}: weight must be a number above 0; {len(bad):,} are not, first: image "
            f"{bad[0]!r}, weight {frame['weight'].loc[bad[0]]!r}"
        )
    return np.asarray(column, dtype=np.float32)


def _longer(teacher: Any, n_rows: int) -> Any:
    """Teacher's predictions with empty rows for more images."""
    if teacher is None:
        return None
    if sparse.issparse(teacher):
        return sparse.csr_array(
            sparse.vstack([teacher, sparse.csr_array((n_rows, teacher.shape[1]))])
        )
    return np.concatenate([teacher, np.zeros((n_rows, teacher.shape[1]), teacher.dtype)])


def read_parents(path: Path, classes: Sequence[str]) -> list[str | None]:
    r"""Read the parent of each class from a CSV file ``class,parent``; None for roots (B1).

    Raises
    ------
    ValueError
        When columns are missing, or a name is no class.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "parents.csv").write_text("class,parent\nrose,plant\n")
    ...     read_parents(Path(folder, "parents.csv"), ["plant", "rose"])
    [None, 'plant']
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if not {"class", "parent"} <= set(frame.columns):
        raise ValueError(
            f"{path} must have the columns 'class', 'parent'; it has {first_few(frame.columns)}"
        )
    parents = {c: p for c, p in zip(frame["class"], frame["parent"], strict=True) if p}
    unknown = sorted({*parents, *parents.values()} - set(classes))
    if unknown:
        raise ValueError(
            f"{path} must name classes of the labels; {len(unknown):,} are unknown, first: "
            f"{first_few(unknown)}. Give every image the labels of all levels."
        )
    return [parents.get(name) for name in classes]


def read_teacher(
    place: str, image_ids: Sequence[str], classes: Sequence[str]
) -> NDArray[np.float32]:
    """Out-of-fold probabilities of a teacher, ``STORE`` or ``STORE:MODEL``, realigned (A27).

    Without a model's name the mean of all its models.

    Raises
    ------
    ValueError
        When the store lacks the images, the classes or the model.

    Examples
    --------
    >>> import tempfile
    >>> from features import FeatureStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = FeatureStore.from_arrays(
    ...         folder + "/store", image_ids=["a", "b"], classes=["x"],
    ...         probabilities={"net": np.array([[0.25], [0.75]])},
    ...     )
    ...     read_teacher(folder + "/store", ["b", "a"], ["x"]).ravel().tolist()
    [0.75, 0.25]
    """
    from features.store import FeatureStore

    path, _, model = place.rpartition(":") if ":" in place else (place, "", "")
    if not Path(path).exists() and Path(place).exists():
        path, model = place, ""
    store = FeatureStore.open(path)
    absent = sorted(set(classes) - set(store.classes.tolist()))
    if absent:
        raise ValueError(
            f"the teacher {path} must know all classes; {len(absent):,} are missing, first: "
            f"{first_few(absent)}"
        )
    view = store.subset(np.asarray(image_ids))
    column = pd.Index(store.classes).get_indexer(pd.Index(list(classes)))
    total = np.zeros((len(image_ids), len(classes)), dtype=np.float32)
    names = [model] if model else store.models
    for name in names:
        values: Any = view.probability_array(name)
        dense = values.toarray() if sparse.issparse(values) else values
        total += np.nan_to_num(np.asarray(dense, dtype=np.float32)[:, column])
    return total / np.float32(max(1, len(names)))


def sha256_of(path: Path | None) -> str | None:
    """Checksum of a file's bytes, None without a file.

    Examples
    --------
    >>> sha256_of(None) is None
    True
    """
    if path is None:
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
