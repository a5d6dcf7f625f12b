"""`stacker demo`: openclipart images to F2-optimal label sets, with an honest table."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from features._pair_folder import read_record
from features.schema import Stack
from features.store import FeatureStore
from stacker._compare import OutOfFold, decide_methods, fit_blends
from stacker._output import temporary_beside, write_text
from stacker._progress import Log
from stacker.datasets import load_openclipart, stratified_subset
from stacker.estimator import PairStacker
from stacker.evaluation import Predictions, ScoreTable, score_methods
from stacker.report import HeldOut, write_report

__all__ = ["DemoSettings", "run_demo"]

HELD_OUT_SHARE = 0.2
MIN_IMAGES = 5
SMALLEST = 100
# The file descriptor itself: a tool's results are our log.
STDERR = 2
# Told while fitting: the stack, four blends, the decision rules, the bootstrap.
N_STEPS = 7


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs on; kept beside its output, so that a resumed run is the same run.

    Attributes
    ----------
    n_images : int or None
        Size of the stratified subset; None is all 5,223 images.
    backbones : tuple of str
        timm names, each with an installed weights package.
    heads : str
        Heads of each backbone, comma separated.
    random_state : int

    Examples
    --------
    >>> DemoSettings().n_images, len(DemoSettings.full().backbones)
    (2000, 3)
    """

    n_images: int | None = 2000
    backbones: tuple[str, ...] = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
    heads: str = "linear,mlp"
    random_state: int = 0

    @classmethod
    def full(cls, random_state: int = 0) -> DemoSettings:
        """All images, three backbones."""
        backbones = tuple(f"tf_efficientnet_lite{k}" for k in range(3))
        return cls(n_images=None, backbones=backbones, random_state=random_state)


def run_demo(
    out: Path,
    settings: DemoSettings | None = None,
    *,
    report: Path | None = None,
    command: str = "stacker demo",
    force: bool = False,
    log: Log | None = None,
) -> ScoreTable:
    """Run images to scores: extract, build features, fit, predict, compare, report.

    Parameters
    ----------
    out : path
        Folder for everything the demo makes. A complete one is refused without `force`; an
        unfinished one with the same settings is resumed.
    settings : DemoSettings, optional
    report : path, optional
        Where to write the HTML report; default ``out/report.html``.
    command : str
        The command line, for the report.
    force : bool, default False
        Start anew and replace what is there.
    log : Log, optional

    Returns
    -------
    ScoreTable
        On the held-out images.

    Raises
    ------
    ValueError
        If there are fewer than 100 images.
    FileExistsError
        If `out` is complete, or was begun with other settings.
    RuntimeError
        If a subprocess fails.

    Examples
    --------
    >>> run_demo(Path("demo"), DemoSettings(n_images=10))
    Traceback (most recent call last):
        ...
    ValueError: n_images must be at least 100, or too few classes have 5 images. Got 10 instead.
    """
    settings, log = settings or DemoSettings(), log or Log()
    report = report or out / "report.html"
    if settings.n_images is not None and settings.n_images < SMALLEST:
        raise ValueError(
            f"n_images must be at least {SMALLEST}, or too few classes have {MIN_IMAGES} images. "
            f"Got {settings.n_images} instead."
        )
    _open_folder(out, report, settings, force=force)
    data = _choose_data(settings)
    log(
        f"openclipart: {len(data.image_ids):,} images, {len(data.classes):,} classes; "
        f"{data.held_out.sum():,} images held out"
    )
    _write_inputs(out, data)
    _extract(out, settings, log, force=force)
    _build_features(out, log, force=force)
    start = time.monotonic()
    fitted = _fit_and_predict(out, data, settings, log)
    log(f"fitted, predicted and compared in {time.monotonic() - start:.0f} s")
    with temporary_beside(out / "model", force=True) as folder:
        fitted.model.save(folder)
    write_report(
        report,
        fitted.model,
        train_labels=fitted.train_labels,
        train=fitted.train,
        held_out=fitted.held_out,
        read_image=_archive_reader(data),
        title="pairstack on openclipart",
        command=command,
        about=_facts(settings, data, fitted),
        force=True,
    )
    result = {"settings": asdict(settings), **fitted.held_out.table.to_dict()}
    write_text(out / "scores.json", json.dumps(result, indent=2) + "\n", force=True)
    return fitted.held_out.table


def _open_folder(out: Path, report: Path, settings: DemoSettings, *, force: bool) -> None:
    """Make the folder, or refuse one that is complete or was begun with other settings."""
    note = out / "settings.json"
    wanted = json.loads(json.dumps(asdict(settings)))
    if force:
        if note.exists():
            # What an earlier demo made may be of other settings: no later run shall resume it.
            for name in ("store", "pairs"):
                shutil.rmtree(out / name, ignore_errors=True)
        for name in ("scores.json", "settings.json", "steps.json"):
            (out / name).unlink(missing_ok=True)
    elif (out / "scores.json").exists():
        raise FileExistsError(
            f"the demo in {str(out)!r} is complete. Give another --out, or --force to run it anew."
        )
    elif note.exists() and json.loads(note.read_text(encoding="utf-8")) != wanted:
        raise FileExistsError(
            f"the demo in {str(out)!r} was begun with other settings "
            f"({note.read_text(encoding='utf-8').strip()}). Give the same settings to resume it, "
            "another --out, or --force to start anew."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(wanted) + "\n", force=True)


@dataclass(frozen=True)
class _Data:
    image_ids: NDArray[np.str_]
    labels: csr_array
    classes: NDArray[np.str_]
    split_group: NDArray[np.str_]
    titles: list[str]
    archive: Path
    held_out: NDArray[np.bool_]


def _choose_data(settings: DemoSettings) -> _Data:
    """Take the stratified subset, without rare classes, and hold out whole split groups."""
    bunch = load_openclipart(
        settings.n_images, min_images=MIN_IMAGES, random_state=settings.random_state
    )
    rows = np.flatnonzero(np.asarray(bunch.labels.sum(axis=1)).ravel() > 0)
    labels, groups = bunch.labels[rows], bunch.split_group[rows]
    n_test = round(HELD_OUT_SHARE * len(rows))
    test = stratified_subset(labels, groups, n_test, random_state=settings.random_state)
    # A group cut to reach the exact number goes to the test side whole.
    held_out = np.isin(groups, groups[test])
    return _Data(
        image_ids=bunch.image_ids[rows],
        labels=labels,
        classes=bunch.classes,
        split_group=groups,
        titles=[str(title) for title in bunch.metadata["title"].fillna("").iloc[rows]],
        archive=bunch.archive,
        held_out=held_out,
    )


def _write_inputs(out: Path, data: _Data) -> None:
    """Write the images, the training images' labels, and all images' split groups."""
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    for stray in {path.name for path in folder.iterdir()} - {f"{i}.webp" for i in data.image_ids}:
        (folder / stray).unlink()
    with ZipFile(data.archive) as bundle:
        for name in data.image_ids:
            target = folder / f"{name}.webp"
            if not target.exists():
                target.write_bytes(bundle.read(f"images/{name}.webp"))
    train = np.flatnonzero(~data.held_out)
    _write_csv(
        out / "labels.csv",
        ("image_id", "labels"),
        [(data.image_ids[i], _label_text(data, i)) for i in train],
    )
    _write_csv(
        out / "meta.csv",
        ("image_id", "split_group", "title"),
        list(zip(data.image_ids, data.split_group, data.titles, strict=True)),
    )
    _write_csv(
        out / "held_out_labels.csv",
        ("image_id", "labels"),
        [(data.image_ids[i], _label_text(data, i)) for i in np.flatnonzero(data.held_out)],
    )


def _label_text(data: _Data, row: np.intp) -> str:
    cells = slice(data.labels.indptr[row], data.labels.indptr[row + 1])
    return " ".join(data.classes[data.labels.indices[cells]])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _extract(out: Path, settings: DemoSettings, log: Log, *, force: bool) -> None:
    """Run ``cnn-extract`` in a process of its own: torch and LightGBM never share one."""
    models = [part for name in settings.backbones for part in ("--model", name)]
    tables = ["--labels", str(out / "labels.csv"), "--metadata", str(out / "meta.csv")]
    heads = ["--heads", settings.heads]
    arguments = ["run", str(out / "images"), *tables, *models, *heads, "--out", str(out / "store")]
    _run_once(out, "cnn_extract.cli", "cnn-extract", arguments, log, force=force)


def _build_features(out: Path, log: Log, *, force: bool) -> None:
    """Write the pair rows, for users to look at: the stack itself streams its own."""
    arguments = [str(out / "store"), "--out", str(out / "pairs")]
    _run_once(out, "features.cli", "build-features", arguments, log, force=force)


def _run_once(
    out: Path, module: str, name: str, arguments: list[str], log: Log, *, force: bool
) -> None:
    """Run a tool unless an earlier, interrupted demo in this folder finished it."""
    note = out / "steps.json"
    done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    if name in done:
        log(f"{name}: done before, skipped")
        return
    output = Path(arguments[arguments.index("--out") + 1])
    if not force and _is_complete(output):
        log(f"{name}: done before, skipped")
    else:
        _run_tool(module, name, [*arguments, *(["--force"] * (force and output.exists()))], log)
    write_text(note, json.dumps([*done, name]) + "\n", force=True)


def _is_complete(output: Path) -> bool:
    """Whether a tool came to its end: the demo may have been killed before it noted that."""
    if (output / "zarr.json").is_file():
        return bool(FeatureStore.open(output).attrs.get("cnn_extract", {}).get("complete"))
    record = read_record(output) if output.is_dir() else None
    return record is not None and record.complete


def _run_tool(module: str, name: str, arguments: Sequence[str], log: Log) -> None:
    """Run one of our commands as a subprocess of this Python; its output goes to stderr."""
    quiet = ["--quiet"] if log.quiet else []
    log(f"$ {shlex.join([name, *arguments])}")
    code = f"from {module} import app; app(prog_name={name!r})"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *quiet], stdout=STDERR, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{name} ended with exit code {done.returncode}; its message stands above. "
            "Run the same demo command again to resume."
        )


@dataclass(frozen=True)
class _Fitted:
    model: Any
    train: Stack
    train_labels: csr_array
    held_out: HeldOut
    n_outside: int


def _fit_and_predict(out: Path, data: _Data, settings: DemoSettings, log: Log) -> _Fitted:
    """Fit the stack and every blend on the training images, score them on the held-out ones."""
    store = FeatureStore.open(out / "store")
    train = store.subset(store.labels_known)
    test_ids = data.image_ids[data.held_out]
    train_stack, test_stack = train.to_stack(), store.subset(test_ids).to_stack()
    groups, Y = train.split_group, train.labels
    truth, n_outside = _align_labels(data, store.classes)
    model = PairStacker(
        cv="store", random_state=settings.random_state, verbose=0 if log.quiet else 1
    )
    with log.listening(), log.steps(N_STEPS) as step:
        step("pair stack")
        model.fit(train, groups=groups)
        methods = fit_blends(
            train_stack,
            Y,
            test_stack,
            groups=groups,
            fold=train.fold,
            random_state=settings.random_state,
            step=step,
        )
        proba = model.predict_proba(test_stack)
        methods["stack"] = OutOfFold(model.oof_proba_, proba, model.decision_)
        step("decision rules")
        predictions = decide_methods(
            methods,
            Y,
            groups=groups,
            class_group=store.class_group,
            random_state=settings.random_state,
        )
        step("bootstrap")
        table = _score(truth, predictions, data)
    held_groups = data.split_group[data.held_out]
    held_out = HeldOut(test_ids, truth, predictions, table, test_stack, held_groups)
    return _Fitted(model, train_stack, Y, held_out, n_outside)


def _score(truth: csr_array, predictions: dict[str, Predictions], data: _Data) -> ScoreTable:
    return score_methods(truth, predictions, data.split_group[data.held_out])


def _align_labels(data: _Data, classes: NDArray[np.str_]) -> tuple[csr_array, int]:
    """Held-out labels in the store's class order; labels that training never had are counted."""
    labels = csr_array(data.labels[np.flatnonzero(data.held_out)])
    position = {name: column for column, name in enumerate(data.classes)}
    columns = np.array([position[name] for name in classes])
    aligned = csr_array(labels.tocsc()[:, columns])
    return aligned, int(labels.sum() - aligned.sum())


def _archive_reader(data: _Data) -> Callable[[str], bytes | None]:
    def read(image_id: str) -> bytes | None:
        with ZipFile(data.archive) as bundle:
            return bundle.read(f"images/{image_id}.webp")

    return read


def _facts(settings: DemoSettings, data: _Data, fitted: _Fitted) -> list[tuple[str, str]]:
    n_test = int(data.held_out.sum())
    return [
        ("Data", "openclipart (public domain drawings)"),
        ("Images", f"{len(data.image_ids) - n_test:,} training, {n_test:,} held out"),
        ("Backbones", ", ".join(settings.backbones)),
        ("Heads", settings.heads.replace(",", ", ")),
        ("Held-out labels of classes without training images", f"{fitted.n_outside:,}, left out"),
    ]
