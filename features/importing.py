"""Predictions in files to a store, with every mismatch named: ids, classes, shapes, range."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features import _checks as checks
from features._context_files import Images, read_statistics, read_vectors_of
from features._label_files import LabelFile, read_label_file, read_names
from features._order_checks import exchanged_columns, fit_of_labels, is_ordered
from features._predictions import (
    Predictions,
    id_column_of,
    is_named,
    is_test_file,
    model_name,
    read_predictions,
)
from features._tables import CsvReader, read_metadata
from features.folds import make_folds
from features.numeric import sigmoid
from features.store import FeatureStore

__all__ = ["find_context_files", "find_files", "import_predictions", "read_predictions"]

N_FOLDS = 5

Ask = Callable[[str], bool]
Say = Callable[[str], None]


def _refuse(question: str) -> bool:
    return False


def _silent(text: str) -> None:
    return None


@dataclass
class _Request:
    """What is known while importing: options, and whom to ask and tell."""

    logits: bool
    check_order: bool
    id_column: str | None
    ask: Ask
    say: Say
    logit_models: list[str] = field(default_factory=list)


def find_files(
    given: Sequence[str], test: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Files of out-of-fold and of test predictions by model name.

    Parameters
    ----------
    given, test : sequence of str
        Files, folders or patterns, each optionally ``NAME=``. Without `test`, those of `given`
        whose names hold the word "test" are the test files.

    Returns
    -------
    out_of_fold, test : dicts of model name to path

    Raises
    ------
    ValueError
        When two files have one name, or nothing is found.

    Examples
    --------
    >>> find_files(["a=x/se101_oof.npy", "b=y.npy"], ["a=x/se101_test.npy"])
    ({'a': 'x/se101_oof.npy', 'b': 'y.npy'}, {'a': 'x/se101_test.npy'})
    """
    first, second = _expand(given), _expand(test)
    if not test:
        second = [(name, path) for name, path in first if is_test_file(path)]
        first = [(name, path) for name, path in first if not is_test_file(path)]
    if not first:
        raise ValueError(f"no file of out-of-fold predictions among {list(given)}.")
    return _by_name(first), _by_name(second)


def find_context_files(given: Sequence[str]) -> dict[str, list[str]]:
    """Files of embeddings or logits by name: that of the labelled images, then that of the test.

    Parameters
    ----------
    given : sequence of str
        As in `find_files`.

    Examples
    --------
    >>> find_context_files(["x/se101_test.npy", "x/se101_train.npy"])
    {'se101': ['x/se101_train.npy', 'x/se101_test.npy']}
    """
    found = _expand(given)
    first = _by_name([(name, path) for name, path in found if not is_test_file(path)])
    second = _by_name([(name, path) for name, path in found if is_test_file(path)])
    names = list({**first, **second})
    return {name: [files[name] for files in (first, second) if name in files] for name in names}


def _expand(given: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for item in given:
        name, equals, rest = item.partition("=")
        path = rest if equals else item
        if Path(path).is_dir():
            names = sorted(str(p) for p in Path(path).iterdir() if p.suffix in _SUFFIXES)
        else:
            names = sorted(glob.glob(path)) or [path]  # noqa: PTH207, a pattern may be absolute
        found += [(name if equals else model_name(n), n) for n in names]
    return found


# A folder usually holds the labels, too: tables in it are named one by one.
_SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".parquet")


def _by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        files = [path for name, path in pairs if name == repeated[0]]
        raise ValueError(f"files {files} would be one model, {repeated[0]!r}: give NAME=FILE.")
    return dict(pairs)


def import_predictions(
    out: str | Path,
    out_of_fold: Mapping[str, Any],
    labels: str | Path,
    *,
    test: Mapping[str, Any] | None = None,
    classes: str | Path | Sequence[str] | None = None,
    image_ids: str | Path | Sequence[str] | None = None,
    test_ids: str | Path | Sequence[str] | None = None,
    metadata: str | Path | None = None,
    embeddings: Mapping[str, Any] | None = None,
    imagenet_logits: Mapping[str, Any] | None = None,
    image_stats: Any = None,
    id_column: str | None = None,
    label_column: str | None = None,
    logits: bool = False,
    check_order: bool = True,
    ask: Ask = _refuse,
    say: Say = _silent,
) -> FeatureStore:
    r"""Make a store of out-of-fold predictions in files, and of test predictions beside them.

    Parameters
    ----------
    out : path
        The store; must not exist.
    out_of_fold, test : mapping of model name to path, array or DataFrame
        Files as in `read_predictions`. Arrays without names have the rows of `labels` (or
        `image_ids`) and the columns of `classes`.
    labels : path
        CSV of ids and space-separated labels, or of ids and one 0/1 column for each class.
    classes, image_ids, test_ids : path or sequence of str, optional
        Names, one a line; of a CSV (a sample submission) the first column. Default classes: the
        file's own; else the 0/1 columns of `labels`; else, for whole numbers, 0, 1, 2, ...;
        else the names in `labels`, sorted, if they are as many as the columns.
    metadata : path, optional
        CSV of ids and any columns; ``split_group`` and ``fold`` are taken as such. Without
        folds of your own five are made, which part no split group.
    embeddings, imagenet_logits : mapping of name to path, array or DataFrame, or a list, optional
        A vector for each image, (n_images, dim), 1,000 logits. Rows with ids are matched by them;
        rows without are those of the labelled images, then those of the test images, in one
        array or (in a list) in two.
    image_stats : path, DataFrame or a list of them, optional
        Ids and a column for each statistic, as ``cnn-extract stats`` writes it.
    id_column, label_column : str, optional
        Default: ``image_id`` and ``labels`` where there, else the first and the second column.
    logits : bool, default False
        Apply a sigmoid to values outside [0, 1] instead of refusing them.
    check_order : bool, default True
        Refuse out-of-fold predictions that do not fit the labels: rows or columns in another
        order.
    ask : callable, optional
        Is asked a yes-or-no question where a mismatch has an obvious repair; default no.
    say : callable, optional
        Is told what was assumed.

    Returns
    -------
    FeatureStore
        Training images with labels, then test images without.

    Raises
    ------
    ValueError
        Naming the mismatch: models, ids, classes, shapes, range, order.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "labels.csv").write_text("id,labels\n7,cat dog\n8,dog\n")
    >>> oof = {"a": np.array([[0.9, 0.8], [0.2, 0.7]])}
    >>> store = import_predictions(folder / "store", oof, folder / "labels.csv")
    >>> store.classes.tolist(), store.image_ids.tolist(), store.labels.toarray().tolist()
    (['cat', 'dog'], ['7', '8'], [[1, 1], [0, 1]])
    """
    how = _Request(logits, check_order, id_column, ask, say)
    truth = read_label_file(labels, id_column, label_column)
    known = _read_models(out_of_fold, how)
    new = _read_models(test or {}, how)
    _same_models(known, new)
    given_ids, given_new = read_names(image_ids), read_names(test_ids)
    known = _upright(known, truth.image_ids if given_ids is None else given_ids, how)
    new = _upright(new, given_new, how)
    names = _class_names(known, truth, classes, how)
    ids = _row_names(known, given_ids, truth.image_ids, "labels", how)
    new_ids = _row_names(new, given_new, None, "test", how) if new else None
    _refuse_shared(ids, new_ids)
    probs = {model: _in_order(values, ids, names, model, how) for model, values in known.items()}
    Y = truth.matrix(ids, names)
    if check_order:
        _check_order(probs, Y, names, how)
    if new_ids is not None:
        for model, values in new.items():
            own = _in_order(values, new_ids, names, f"{model} (test)", how)
            probs[model] = np.concatenate([probs[model], own])
    everything = ids if new_ids is None else np.concatenate([ids, new_ids])
    unlabelled = np.zeros((len(everything) - len(ids), len(names)), dtype=np.int8)
    extra = _extra(metadata, everything, how)
    if "fold" not in extra:
        extra["fold"] = _folds(Y, extra.get("split_group"), len(everything), how)
    alike = given_ids is not None or np.array_equal(ids, truth.image_ids)
    images = Images(everything, len(ids), alike, id_column, say)
    for kind, sources in (("embeddings", embeddings), ("imagenet_logits", imagenet_logits)):
        extra[kind] = {
            name: read_vectors_of(source, images, f"{kind} {name!r}")
            for name, source in (sources or {}).items()
        }
    if image_stats is not None:
        extra["image_stats"] = read_statistics(image_stats, images)
    return FeatureStore.from_arrays(
        out,
        image_ids=everything,
        classes=names,
        probabilities=probs,
        labels=np.concatenate([Y, unlabelled]),
        labels_known=np.arange(len(everything)) < len(ids),
        **extra,
    )


def _read_models(given: Mapping[str, Any], how: _Request) -> dict[str, Predictions]:
    """Read files; one with several arrays gives several models."""
    found: dict[str, Predictions] = {}
    for name, source in given.items():
        read = _read_source(name, source, how)
        repeated = sorted(found.keys() & read.keys())
        if repeated:
            raise ValueError(
                f"models: {str(source)!r} and another file both hold {repeated}. Take their arrays "
                "one by one: NAME=FILE:KEY."
            )
        found |= read
    return found


def _read_source(name: str, source: Any, how: _Request) -> dict[str, Predictions]:
    if not isinstance(source, str | Path):
        return {name: source if isinstance(source, pd.DataFrame) else np.asarray(source)}
    read = read_predictions(source, how.id_column)
    return {name: next(iter(read.values()))} if len(read) == 1 else read


def _same_models(known: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if new and set(new) != set(known):
        raise ValueError(
            f"models: out-of-fold predictions are of {sorted(known)}, test predictions of "
            f"{sorted(new)}. Give NAME=FILE so that the names agree."
        )


def _upright(
    models: dict[str, Predictions], ids: NDArray[np.str_] | None, how: _Request
) -> dict[str, Predictions]:
    """Turn predictions round that hold classes by images, if that is what is wanted."""
    return models if ids is None else {m: _turned(m, v, ids, how) for m, v in models.items()}


def _turned(model: str, values: Predictions, ids: NDArray[np.str_], how: _Request) -> Predictions:
    if isinstance(values, pd.DataFrame):
        lying = bool(pd.Index(ids).isin(values.columns.astype(str)).all())
    else:
        lying = values.ndim == 2 and values.shape[1] == len(ids) != values.shape[0]
    if not lying:
        return values
    found = (
        f"shapes: model {model!r} has shape {values.shape}, and there are {len(ids):,} images: "
        "its columns are the images, its rows the classes."
    )
    if not how.ask(f"{found} Shall it be transposed?"):
        raise ValueError(f"{found} Save it transposed (values.T).")
    how.say(f"model {model!r} was transposed")
    return values.T


def _class_names(
    known: Mapping[str, Predictions], truth: LabelFile, classes: Any, how: _Request
) -> NDArray[np.str_]:
    """Names of the columns: given, in a file, or read off the labels."""
    named = _first_named(known, "columns")
    first = next(iter(known))
    n_columns = known[first].shape[1]
    given = read_names(classes)
    if given is None and named is not None:
        return checks.as_names(named, "class name")
    if given is not None:
        if len(given) != n_columns:
            raise ValueError(
                f"classes: {len(given):,} names for the {n_columns:,} columns of model {first!r}, "
                f"whose shape is {known[first].shape}. Give one name a column, in their order."
            )
        return checks.as_names(given, "class name")
    names, why = truth.guess_classes(n_columns)
    how.say(f"classes: {why}")
    return names


def _row_names(
    models: Mapping[str, Predictions],
    given: NDArray[np.str_] | None,
    default: NDArray[np.str_] | None,
    what: str,
    how: _Request,
) -> NDArray[np.str_]:
    """Names of the rows: in a file, given, or those of the labels in their order."""
    named = _first_named(models, "index")
    if named is not None and given is None:
        return checks.as_names(named, "image id")
    n_rows = next(iter(models.values())).shape[0]
    if given is None and default is None:
        how.say(f'test images: no ids given, so they are "test0" to "test{n_rows - 1}"')
        return np.array([f"test{i}" for i in range(n_rows)])
    ids = default if given is None else given
    assert ids is not None
    for model, values in models.items():
        if not _has_names(values, "index") and len(values) != len(ids):
            raise ValueError(
                f"shapes: model {model!r} has {len(values):,} rows, but there are {len(ids):,} "
                f"image ids ({'given' if given is not None else 'lines of the ' + what}). Give "
                "the ids of its rows in a file."
            )
    if given is None:
        how.say(f"image ids: row k of the predictions is line k of the {what}")
    return checks.as_names(ids, "image id")


def _refuse_shared(ids: NDArray[np.str_], new: NDArray[np.str_] | None) -> None:
    shared = ids[:0] if new is None else np.intersect1d(ids, new)
    if len(shared):
        raise ValueError(
            f"ids: {len(shared):,} images are among the labelled and the test images, first: "
            f"{checks.first_few(shared)}."
        )


def _in_order(
    values: Predictions, ids: NDArray[np.str_], names: NDArray[np.str_], model: str, how: _Request
) -> NDArray[np.float32]:
    """Values realigned by name, in [0, 1], float32 (n_images, n_classes)."""
    where = f"model {model!r}"
    array = _by_names(values, ids, names, where)
    if array.shape != (len(ids), len(names)):
        raise ValueError(
            f"shapes: {where} has shape {array.shape}; expected are {len(ids):,} images and "
            f"{len(names):,} classes."
        )
    array = checks.as_float(array, where).astype(np.float32)
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"range: {where} has NaN or infinity, first: image {str(ids[row])!r}, class "
            f"{str(names[column])!r}. Predict these images again."
        )
    return _in_range(array, where, how)


def _has_names(values: Predictions, axis: str) -> bool:
    return isinstance(values, pd.DataFrame) and is_named(getattr(values, axis))


def _first_named(models: Mapping[str, Predictions], axis: str) -> pd.Index | None:
    """Names along an axis ("index" or "columns") by the first model that has them."""
    return next((getattr(v, axis) for v in models.values() if _has_names(v, axis)), None)


def _by_names(
    values: Predictions, ids: NDArray[np.str_], names: NDArray[np.str_], where: str
) -> NDArray[Any]:
    """Values in the order of ids and names along the axes that the file names."""
    array = np.asarray(values)
    for axis, (label, wanted) in enumerate((("index", ids), ("columns", names))):
        if _has_names(values, label):
            what = ("image id", "class name")[axis]
            order = checks.positions(wanted, getattr(values, label), what=what, where=where)
            array = checks.take_axis(array, order, axis)
    return array


def _in_range(array: NDArray[np.float32], where: str, how: _Request) -> NDArray[np.float32]:
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return array
    if low >= -checks.ROUNDING and high <= 1 + checks.ROUNDING:
        raise ValueError(
            f"range: {where} has values from {low:.9g} to {high:.9g}, just outside [0, 1]: clip "
            "them (np.clip(values, 0, 1))."
        )
    found = f"range: {where} has values from {low:.4g} to {high:.4g}, not probabilities"
    if high <= 0 or low >= 0:
        hint = "exponentiate log-probabilities" if high <= 0 else "divide percentages by 100"
        raise ValueError(f"{found}: {hint} first.")
    if not (how.logits or how.ask(f"{found}. Are they logits, shall a sigmoid be applied?")):
        raise ValueError(f"{found}: apply a sigmoid if they are logits (logits=True, --logits).")
    how.say(f"{where}: a sigmoid was applied")
    return sigmoid(array)


def _check_order(
    probs: Mapping[str, NDArray[Any]],
    Y: NDArray[np.int8],
    names: NDArray[np.str_],
    how: _Request,
) -> None:
    """Refuse a model whose positives look no more probable than its negatives."""
    for model, values in probs.items():
        for found in _doubts(model, values, Y, names):
            if not how.ask(f"{found} Import it all the same?"):
                raise ValueError(
                    f"{found} Give ids and classes (or check_order=False, --any-order)."
                )


def _doubts(
    model: str, values: NDArray[Any], Y: NDArray[np.int8], names: NDArray[np.str_]
) -> Iterator[str]:
    fit = fit_of_labels(values, Y)
    if fit is not None and not is_ordered(*fit[:2]):
        share, z, n_classes = fit
        yield (
            f"order: model {model!r} gives true labels a higher probability than others in "
            f"{share:.0%} of {n_classes:,} classes, {z:.1f} standard errors from chance. Are its "
            "rows in the order of the ids, its columns in the order of the classes?"
        )
    exchanged = exchanged_columns(values, Y)
    if exchanged:
        pairs = ", ".join(f"{str(names[a])!r} with {str(names[b])!r}" for a, b in exchanged[:3])
        yield (
            f"order: columns of model {model!r} fit each other's labels much better than their "
            f"own: {pairs} ({len(exchanged):,} in all). Are these columns exchanged?"
        )


def _folds(Y: NDArray[np.int8], split_group: Any, n_images: int, how: _Request) -> Any:
    """Folds of the labelled images, -1 for the rest; those that `PairStacker` makes by itself."""
    groups = None if split_group is None else np.asarray(split_group)[: len(Y)]
    if len(Y if groups is None else np.unique(groups.astype(np.str_))) < N_FOLDS:
        return None
    fold = np.full(n_images, -1, dtype=np.int16)
    fold[: len(Y)] = make_folds(Y, N_FOLDS, groups)
    how.say(f"folds: {N_FOLDS} made; a column fold of the metadata gives your own")
    return fold


def _extra(metadata: str | Path | None, ids: NDArray[np.str_], how: _Request) -> dict[str, Any]:
    if metadata is None:
        return {}
    table = CsvReader(how.id_column or id_column_of(Path(metadata)))
    return read_metadata(table(metadata, text=["split_group"]), pd.Index(ids), metadata)
