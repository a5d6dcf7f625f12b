"""Rows written chunk by chunk: completion marks, resuming after a kill, skipped images."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from features import _zarr
from features.store import FeatureStore

N_IMAGES, N_CLASSES, CHUNK = 23, 5, 8
IDS = np.array([f"folder/img {i}" for i in range(N_IMAGES)])
CLASSES = np.array(["tag::cat", "tag::dog", "culture::french", "culture::éire", "other"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def empty(tmp_path):
    """Make a store without predictions."""
    return make_empty(tmp_path / "empty")


def make_empty(path):
    return FeatureStore.create(path, image_ids=IDS, classes=CLASSES, chunk_images=CHUNK)


def contents(path):
    """Every file below a folder, with its bytes."""
    files = {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(Path(path).rglob("*"))
        if f.is_file()
    }
    assert not [name for name in files if name.endswith(".partial")]
    return files


ROWS = np.random.default_rng(5).random((N_IMAGES, N_CLASSES)).astype(np.float16)


def fill(store, upto=N_IMAGES):
    """Write what is missing, chunk by chunk, as an extraction does."""
    name = "probabilities/m"
    store.require_array(name, (N_CLASSES,), "float16", ("image", "class"), {"tta": 2})
    done = store.written(name)
    for start in range(0, upto, CHUNK):
        if not done[start : start + CHUNK].all():
            store.write_rows(name, start, ROWS[start : start + CHUNK])


class Killed(BaseException):
    """Stands for a kill: no handler of ours may swallow it."""


@pytest.mark.parametrize("survived", range(6))
def test_a_killed_run_resumes_to_the_same_bytes(survived, tmp_path, monkeypatch):
    """Killed between data and mark, or before either, a run must end like one never killed."""
    whole = make_empty(tmp_path / "whole")
    fill(whole)
    store = make_empty(tmp_path / "killed")
    real, writes = _zarr.write_block, []

    def dies(*arguments):
        if len(writes) == survived:
            raise Killed
        writes.append(arguments)
        real(*arguments)

    monkeypatch.setattr(_zarr, "write_block", dies)
    with pytest.raises(Killed):
        fill(store)
    monkeypatch.setattr(_zarr, "write_block", real)
    resumed = FeatureStore.open(store.path, "r+")
    # Two writes a chunk: its data, then its marks.
    assert resumed.written("probabilities/m").sum() == survived // 2 * CHUNK
    assert resumed.written("probabilities/m")[: survived // 2 * CHUNK].all()
    fill(resumed)
    assert resumed.is_complete("probabilities/m")
    assert contents(store.path) == contents(whole.path)


@pytest.mark.parametrize("survived", range(5))
def test_a_run_killed_while_it_makes_an_array_resumes(survived, tmp_path, monkeypatch):
    """An array without marks, or not in the consolidated metadata, would stay so."""
    whole, store = make_empty(tmp_path / "whole"), make_empty(tmp_path / "killed")
    fill(whole)
    steps = []

    def dies(real):
        def step(*arguments, **named):
            if len(steps) == survived:
                raise Killed
            steps.append(real)
            return real(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        for name in ("create_array", "consolidate", "write_block"):
            patch.setattr(_zarr, name, dies(getattr(_zarr, name)))
        with pytest.raises(Killed):
            fill(store)
    fill(FeatureStore.open(store.path, "r+"))
    assert contents(store.path) == contents(whole.path)


def test_a_process_killed_outright_resumes_to_the_same_bytes(tmp_path):
    """SIGKILL leaves no handler time to tidy up."""
    whole = make_empty(tmp_path / "whole")
    fill(whole)
    make_empty(tmp_path / "killed")
    code = """
        import sys, time, numpy as np
        from features.store import FeatureStore
        store = FeatureStore.open(sys.argv[1], "r+")
        name, rows = "probabilities/m", np.load(sys.argv[2])
        store.require_array(name, rows.shape[1:], "float16", ("image", "class"), {"tta": 2})
        for start in range(0, len(rows), 8):
            store.write_rows(name, start, rows[start:start + 8])
            print("chunk", flush=True)
            time.sleep(0.2)
    """
    np.save(tmp_path / "rows.npy", ROWS)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        [*command, str(tmp_path / "killed"), str(tmp_path / "rows.npy")], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.kill()
    store = FeatureStore.open(tmp_path / "killed", "r+")
    assert not store.is_complete("probabilities/m")
    fill(store)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_marks_come_after_data(empty, monkeypatch):
    """A mark on rows that are not on disk makes a resumed run skip them."""
    order = []
    real = _zarr.write_block

    def watch(array, *rest):
        order.append(array.path)
        real(array, *rest)

    monkeypatch.setattr(_zarr, "write_block", watch)
    fill(empty, upto=CHUNK)
    assert order == ["probabilities/m", "written/probabilities/m"]
    # Written again, the rows are unmarked while their values change.
    empty.write_rows("probabilities/m", 0, ROWS[:CHUNK])
    assert order[2:] == ["written/probabilities/m", "probabilities/m", "written/probabilities/m"]


def test_readers_see_nothing_of_unfinished_rows(empty, monkeypatch):
    """A reader would take half-written rows for predictions."""
    fill(empty, upto=CHUNK)
    real = _zarr.write_block

    def no_marks(array, *rest):
        if not array.path.startswith("written"):
            real(array, *rest)

    monkeypatch.setattr(_zarr, "write_block", no_marks)
    fill(empty)
    frame = empty.probabilities("m")
    np.testing.assert_array_equal(frame.iloc[:CHUNK], ROWS[:CHUNK])
    assert frame.iloc[CHUNK:].isna().all(axis=None)
    with pytest.raises(ValueError, match=r"probabilities/m is unfinished: 15 of 23 images have"):
        empty.to_stack()


@pytest.mark.parametrize(
    ("start", "rows", "message"),
    [
        (4, 8, "whole chunks of 8 images; 4..11 cuts one"),
        (0, 4, "whole chunks of 8 images; 0..3 cuts one"),
        (16, 8, "rows 16..23 of probabilities/m are outside 0..22"),
        (-8, 8, "outside"),
    ],
)
def test_ranges_that_cut_a_chunk_are_refused(start, rows, message, empty):
    """Two writers of one chunk would overwrite each other's rows."""
    fill(empty, upto=0)
    with pytest.raises(ValueError, match=message):
        empty.write_rows("probabilities/m", start, np.zeros((rows, N_CLASSES)))
    with pytest.raises(ValueError, match=r"must have shape \(5,\) without the image axis"):
        empty.write_rows("probabilities/m", 0, np.zeros((8, 3)))


def test_resuming_with_other_settings_is_refused(empty):
    """Half the rows would come from one model, half from another."""
    fill(empty, upto=CHUNK)
    with pytest.raises(ValueError, match=r"other settings \(tta: there 2, asked 1\)"):
        empty.require_array(
            "probabilities/m", (N_CLASSES,), "float16", ("image", "class"), {"tta": 1}
        )
    with pytest.raises(ValueError, match="dtype: there 'float16', asked 'float32'"):
        empty.require_array("probabilities/m", (N_CLASSES,), "float32", ("class",), {"tta": 2})
    empty.require_image_stats(["a", "b"])
    empty.require_image_stats(["a", "b"])
    with pytest.raises(ValueError, match="holds other statistics: there 'a', 'b', asked 'a'"):
        empty.require_image_stats(["a"])


def test_skipped_images_stay_in_their_rows(empty):
    """An unreadable image would shift every row after it, or pass as a prediction."""
    empty.set_errors([3, 20], ["truncated", "no such file"])
    values = ROWS.copy()
    values[[3, 20]] = np.nan
    empty.require_array("probabilities/m", (N_CLASSES,), "float16", ("image", "class"))
    for start in range(0, N_IMAGES, CHUNK):
        empty.write_rows("probabilities/m", start, values[start : start + CHUNK])
    store = FeatureStore.open(empty.path)
    assert store.errors[[3, 4, 20]].tolist() == ["truncated", "", "no such file"]
    assert not store.written("probabilities/m")[[3, 20]].any()
    assert store.is_complete("probabilities/m")
    with pytest.raises(ValueError, match=r"2 images were skipped .* store.without_skipped\(\)"):
        store.to_stack()
    good = np.setdiff1d(np.arange(N_IMAGES), [3, 20])
    view = store.without_skipped()
    np.testing.assert_array_equal(view.to_stack().probabilities["m"], ROWS[good])
    assert view.labels.shape[0] == view.n_images == len(good)
    empty.set_errors(3, "")
    assert not empty.is_complete("probabilities/m")
    with pytest.raises(ValueError, match="2 images but 1 messages"):
        empty.set_errors([0, 1], ["x"])


def test_rows_may_come_in_any_order_and_along_any_axis(empty, rng):
    """Ranks write disjoint ranges; fold models have the image axis second."""
    values = rng.random((2, N_IMAGES, N_CLASSES)).astype(np.float32)
    empty.require_array(
        "fold_probabilities/m", (2, N_CLASSES), "float32", ("fold", "image", "class")
    )
    for start in (16, 0, 8):
        empty.write_rows("fold_probabilities/m", start, values[:, start : start + CHUNK])
    np.testing.assert_array_equal(empty.fold_probabilities("m"), values)


def test_leftovers_of_killed_writers_are_removed(empty):
    """Temporary files of every kill would pile up in the store."""
    old, new = empty.path / "fold" / "zarr.1.partial", empty.path / "fold" / "zarr.2.partial"
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (time.time() - 1000,) * 2)
    FeatureStore.open(empty.path, "r+")
    assert not old.exists()
    assert new.exists()


def test_a_flipped_byte_is_found(empty, rng):
    """Bit rot in a chunk would be read as predictions."""
    empty.add_probabilities("m", rng.random((N_IMAGES, N_CLASSES)))
    chunk = empty.path / "probabilities" / "m" / "c" / "1" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="checksum"):
        empty.probabilities("m")


def test_labels_that_are_half_written_stay_the_old_ones(empty, monkeypatch):
    """Boundaries of the old labels over the indices of the new ones are other labels."""
    labels = np.eye(N_IMAGES, N_CLASSES, dtype=int)
    empty.set_labels(labels)
    real, writes = _zarr.write_block, []

    def dies(*arguments):
        if writes:
            raise Killed
        writes.append(arguments)
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_zarr, "write_block", dies)
        with pytest.raises(Killed):
            empty.set_labels(1 - labels)
    store = FeatureStore.open(empty.path, "r+")
    np.testing.assert_array_equal(store.labels.toarray(), labels)
    store.set_labels(1 - labels)
    np.testing.assert_array_equal(store.labels.toarray(), 1 - labels)
