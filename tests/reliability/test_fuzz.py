"""Damaged and invented files end in an error of ours: no crash, no hang, no flood of memory.

``make test`` tries a few of each, ``make fuzz`` 50,000 (``FUZZ_CASES`` sets another number).
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.store import FeatureStore
from features.verify import verify_store
from stacker import PairStacker
from tests.reliability.test_security import reseal

FEW, MANY = 50, int(os.environ.get("FUZZ_CASES", "50000"))
SECONDS = 10
MEMORY = 4 << 30  # of address space, beyond what the process has when it begins
STATM = Path("/proc/self/statm")
CLEAR = (ValueError, FileNotFoundError, FileExistsError)
SHORTEST = 12  # letters of a message that says something


def cases(number):
    """Hypothesis settings for a number of cases."""
    return settings(
        max_examples=number,
        deadline=SECONDS * 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Turn a flood of memory into an error of this process, where it says how much it has."""
    if not STATM.exists():  # no Linux: without a bound
        yield
        return
    import resource

    mapped = int(STATM.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def clear_error(named=""):
    """Let an error of ours pass that says something, and names the file."""
    said = None
    try:
        yield
    except CLEAR as error:
        said = str(error)
    assert said is None or (len(said) >= SHORTEST and named in said), said


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("fdict"), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    """Flip, delete, insert, cut or copy bytes."""
    for place, kind, some in edits:
        at = int(place * len(data))
        if kind == "f" and data:
            data = data[:at] + bytes([data[at] ^ ((some or b"\1")[0] or 1)]) + data[at + 1 :]
        elif kind == "d":
            data = data[:at] + data[at + 1 + len(some) :]
        elif kind == "i":
            data = data[:at] + some + data[at:]
        elif kind == "c":
            data = data[:at]
        else:
            data = data[:at] + data[at // 2 : at // 2 + 40] + data[at:]
    return data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**40, 2**63, 1e308, float("nan")])


def changed(document, draw):
    """Change one value of a JSON document, anywhere in it."""
    if isinstance(document, dict) and document and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(document)))
        if not draw(st.integers(0, 9)):
            return {k: v for k, v in document.items() if k != key}
        return {**document, key: changed(document[key], draw)}
    if isinstance(document, list) and document and draw(st.integers(0, 9)):
        k = draw(st.integers(0, len(document) - 1))
        return [*document[:k], changed(document[k], draw), *document[k + 1 :]]
    return draw(NUMBERS | JSON)


# Stores: metadata -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Make a small store; its metadata files by their path."""
    path = tmp_path_factory.mktemp("fuzz") / "store"
    FeatureStore.from_arrays(
        path,
        image_ids=["i", "j", "k"],
        classes=["a", "b"],
        probabilities={"m": np.full((3, 2), 0.5)},
        labels=[["a"], ["b"], []],
        fold=[0, 1, 0],
        embeddings={"e": np.ones((3, 4))},
        chunk_images=2,
    )
    return path, {file: file.read_bytes() for file in sorted(path.rglob("zarr.json"))}


def read_store(path):
    """Read everything; only errors of ours."""
    with clear_error():
        found = FeatureStore.open(path)
        found.to_stack()
        assert found.labels.shape == (found.n_images, found.n_classes)
        found.fold, found.split_group, found.metadata, found.errors  # noqa: B018
    verify_store(path)


def fuzz_store(store, data):
    path, files = store
    file = data.draw(st.sampled_from(list(files)))
    if data.draw(st.booleans()):
        content = edited(files[file], data.draw(EDITS))
    else:
        content = json.dumps(changed(json.loads(files[file]), data.draw)).encode()
    file.write_bytes(content)
    try:
        read_store(path)
    finally:
        file.write_bytes(files[file])


# Tables -----------------------------------------------------------------------------------------

CELL = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["a", "x y", '"', "\r", ""]
)
TABLE = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=5).map("\n".join)


def fuzz_table(folder, data):
    from cnn_extract.tables import read_labels, read_metadata
    from features._tables import CsvReader

    path = folder / "labels.csv"
    text = data.draw(st.sampled_from(["", "image_id,labels\n", "\ufeffimage_id,labels\n"]))
    text += data.draw(TABLE)
    path.write_bytes(edited(text.encode(), data.draw(EDITS | st.just([]))))
    for read in (read_labels, read_metadata, CsvReader("image_id")):
        with clear_error("labels.csv"):
            read(path)


# Predictions ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """Make one file of each kind; their bytes by name."""
    folder = tmp_path_factory.mktemp("fuzz")
    frame = pd.DataFrame({"image_id": ["i", "j"], "a": [0.5, 0.25], "b": [1.0, 0.0]})
    frame.to_csv(folder / "p.csv", index=False)
    frame.to_parquet(folder / "p.parquet")
    np.save(folder / "p.npy", frame[["a", "b"]].to_numpy())
    np.savez_compressed(folder / "p.npz", m=np.ones((2, 2)), image_id=np.array(["i", "j"]))
    return {file: file.read_bytes() for file in sorted(folder.iterdir())}


def fuzz_predictions(predictions, data):
    from features.importing import read_predictions

    file = data.draw(st.sampled_from(list(predictions)))
    file.write_bytes(edited(predictions[file], data.draw(EDITS)))
    # A header may ask for more memory than there is.
    with clear_error(file.name), contextlib.suppress(MemoryError):
        for values in read_predictions(file).values():
            assert np.ndim(values) == 2


# Models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory, slice_arrays):
    """Fit a small model for each booster; the folders' files by their path."""
    made, columns = [], [0, 1, 2, 3]
    X = {"a": slice_arrays["probabilities"][0][:90][:, columns]}
    X["b"] = slice_arrays["probabilities"][3][:90][:, columns]
    labels = slice_arrays["labels"][:90][:, columns]
    for booster in ("lightgbm", "xgboost"):
        folder = tmp_path_factory.mktemp("fuzz") / "model"
        model = PairStacker(booster=booster, cv=2, random_state=0, n_jobs=1)
        model.fit(X, labels).save(folder)
        files = {f: f.read_bytes() for f in sorted(folder.iterdir()) if f.suffix != ".npy"}
        made.append((folder, files))
    return made


def fuzz_model(models, data):
    folder, files = data.draw(st.sampled_from(models))
    file = data.draw(st.sampled_from(list(files)))
    if file.suffix == ".json" and data.draw(st.booleans()):
        content = json.dumps(changed(json.loads(files[file]), data.draw)).encode()
    else:
        content = edited(files[file], data.draw(EDITS))
    file.write_bytes(content)
    if file.name != "checksums.json":
        reseal(folder)
    try:
        with clear_error():
            PairStacker.load(folder)
    finally:
        for name, before in files.items():
            name.write_bytes(before)


# Recipes ----------------------------------------------------------------------------------------


def fuzz_recipe(folder, data):
    from cnn_extract.train.presets import preset_names, preset_text
    from cnn_extract.train.toml import parse_recipe

    text = preset_text(data.draw(st.sampled_from(preset_names()))).encode()
    lines = text.split(b"\n")
    if data.draw(st.booleans()):
        k = data.draw(st.integers(0, len(lines) - 1))
        value = json.dumps(data.draw(JSON | NUMBERS)).encode()
        lines[k] = lines[k].partition(b"=")[0] + b"= " + value
    content = edited(b"\n".join(lines), data.draw(EDITS | st.just([])))
    with clear_error():
        parse_recipe(content.decode(errors="replace"), name="fuzzed")


TARGETS = {
    "store metadata": (fuzz_store, "store"),
    "labels CSV": (fuzz_table, "tmp_path"),
    "predictions": (fuzz_predictions, "predictions"),
    "model folder": (fuzz_model, "models"),
    "recipe TOML": (fuzz_recipe, "tmp_path"),
}


def run(target, request, number):
    """Try a number of cases of a target."""
    check, needs = TARGETS[target]
    given_it = request.getfixturevalue(needs)

    @cases(number)
    @given(data=st.data())
    def tried(data):
        check(given_it, data)

    tried()


@pytest.mark.parametrize("target", TARGETS)
def test_some_damaged_files_end_in_a_clear_error(target, request):
    """A file from a stranger ends in a traceback from somewhere inside, or not at all."""
    run(target, request, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_damaged_files_end_in_a_clear_error(target, request):
    """The long form."""
    run(target, request, MANY)
    print(f"{target}: {MANY:,} cases")


def test_a_store_without_a_file_ends_in_a_clear_error(store, tmp_path):
    """An archive that was unpacked in part."""
    path, files = store
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(path, copy)
        (copy / file.relative_to(path)).unlink()
        read_store(copy)


# What the long forms found ----------------------------------------------------------------------


def test_a_store_that_claims_labels_beyond_memory_is_refused(store):
    """Eight gigabytes of zeros were read for six bytes of labels."""
    path, files = store
    for name, message in {
        "indices": "are damaged: 2 are counted, 2,147,483,648 stored",
        "indptr": "its axis 'boundary' has another length than the store",
    }.items():
        file = path / "labels" / name / "zarr.json"
        document = json.loads(files[file])
        file.write_text(json.dumps({**document, "shape": [2**31]}))
        with pytest.raises(ValueError, match=message):
            FeatureStore.open(path).labels  # noqa: B018
        file.write_bytes(files[file])


@pytest.mark.parametrize("lost", ["columns", "name", "numpy_type", "pandas_type"])
def test_a_table_whose_notes_of_pandas_are_damaged_is_refused(tmp_path, lost):
    """One byte in a key of the notes was a bare KeyError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from features.importing import read_predictions

    table = pa.Table.from_pandas(pd.DataFrame({"a": [0.5]}, pd.Index(["i"], name="image_id")))
    notes = table.schema.metadata[b"pandas"].replace(f'"{lost}"'.encode(), b'"x"')
    notes = notes.replace(b'"field_name"', b'"y"') if lost == "name" else notes
    pq.write_table(table.replace_schema_metadata({b"pandas": notes}), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p\.parquet is no Parquet file, or damaged"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize("content", ["[null]", '["model.json"]', "3", "null"])
def test_checksums_that_are_no_object_are_refused(tmp_path, content):
    """A list where names belong was a bare TypeError."""
    (tmp_path / "checksums.json").write_text(content)
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        PairStacker.load(tmp_path)


def test_gathered_metadata_that_is_a_number_is_damage(store):
    """`stacker verify` itself ended in an AttributeError."""
    path, files = store
    document = json.loads(files[path / "zarr.json"])
    document["consolidated_metadata"]["metadata"]["class"] = -1
    (path / "zarr.json").write_text(json.dumps(document))
    assert "zarr.json: the gathered metadata is damaged" in verify_store(path).problems
    (path / "zarr.json").write_bytes(files[path / "zarr.json"])


def test_a_table_without_lines_is_refused(tmp_path):
    """A first line alone was a bare IndexError."""
    from features.importing import read_predictions

    (tmp_path / "p.csv").write_text("image_id,a,b\n")
    with pytest.raises(ValueError, match=r"p\.csv: it holds no image, only a first line"):
        read_predictions(tmp_path / "p.csv")
