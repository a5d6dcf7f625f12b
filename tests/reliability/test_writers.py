"""Several processes on one store, killed writers, and what readers see meanwhile."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import _locks, _zarr
from features.store import FeatureStore

N_IMAGES, N_CLASSES, CHUNK = 24, 3, 8
IDS = [f"i{k:02}" for k in range(N_IMAGES)]
CLASSES = ["a", "b", "c"]
ROWS = "probabilities/m"

pytestmark = pytest.mark.skipif(_locks.fcntl is None, reason="locks of a POSIX system")


class Killed(BaseException):
    """What a kill does to the rest of a function."""


@pytest.fixture
def store(tmp_path):
    made = FeatureStore.create(
        tmp_path / "store",
        image_ids=IDS,
        classes=CLASSES,
        labels=[["a"]] * N_IMAGES,
        fold=np.arange(N_IMAGES) % 3,
        metadata=pd.DataFrame({"year": np.arange(N_IMAGES)}, IDS),
        chunk_images=CHUNK,
    )
    made.require_array(ROWS, (N_CLASSES,), np.float32, ("image", "class"))
    return made


class Other:
    """Another process that has the store open and runs what it is told, line by line."""

    def __init__(self):
        code = textwrap.dedent(
            """
            import sys
            import numpy as np
            from features.store import FeatureStore
            for line in sys.stdin:
                try:
                    exec(line)
                    print("done", flush=True)
                except Exception as error:
                    print(type(error).__name__, str(error).replace("\\n", " "), flush=True)
            """
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def processes():
    """Processes that are running: one serves all tests that do not kill it."""
    running = []
    yield running
    for process in running:
        process.kill()


@pytest.fixture
def other(store, processes):
    processes[:] = [p for p in processes if p.process.poll() is None] or [Other()]
    assert processes[0](f"store = FeatureStore.open({str(store.path)!r}, 'r+')") == "done"
    return processes[0]


def rows(value=0.5, n=CHUNK):
    return np.full((n, N_CLASSES), value, dtype=np.float32)


def test_two_processes_write_rows_of_their_own_and_no_others(store, other):
    """Two writers of the same images mix their values; a killed one locks its rows for ever."""
    assert other(f"store.write_rows('{ROWS}', 0, np.full((8, 3), 0.25))") == "done"
    store.write_rows(ROWS, 8, rows())
    with pytest.raises(
        BlockingIOError,
        match=r"images 0 to 7 of probabilities/m .* being written by "
        rf"(process {other.process.pid}|another process)\. Wait until it has ended",
    ):
        store.write_rows(ROWS, 0, rows())
    refused = other(f"store.write_rows('{ROWS}', 8, np.full((16, 3), 0.25))")
    assert refused.startswith("BlockingIOError images 8 to 23")
    assert other(f"store.write_rows('{ROWS}', 16, np.full((8, 3), 0.25))") == "done"
    assert store.is_complete(ROWS)
    assert store.probability_array("m")[:, 0].tolist() == [0.25] * 8 + [0.5] * 8 + [0.25] * 8
    other.kill()
    store.write_rows(ROWS, 0, rows())
    assert (store.probability_array("m")[:CHUNK] == 0.5).all()


def test_rows_are_given_back(store, other):
    """A notebook that has written a model keeps everybody else from writing it again."""
    assert other("store.add_probabilities('whole', np.full((24, 3), 0.5))") == "done"
    store.add_probabilities("whole", rows(0.1, N_IMAGES), overwrite=True)
    assert other(f"store.write_rows('{ROWS}', 0, np.full((8, 3), 0.25))") == "done"
    assert other(f"store.release('{ROWS}')") == "done"
    store.write_rows(ROWS, 0, rows())
    del store
    assert other(f"store.write_rows('{ROWS}', 0, np.full((8, 3), 0.25))").startswith("Blocking")


def test_a_dropped_store_gives_its_rows_back(store, other):
    """Rows stay locked by an object that nobody has any more."""
    again = FeatureStore.open(store.path, "r+")
    again.write_rows(ROWS, 0, rows())
    assert other(f"store.claim_rows('{ROWS}', 0, 8)").startswith("BlockingIOError")
    del again
    assert other(f"store.claim_rows('{ROWS}', 0, 8)") == "done"


def test_attributes_of_two_processes_are_both_kept(store, other):
    """The one that writes last undoes what the other wrote since."""
    assert other("store.update_attrs({'theirs': 1})") == "done"
    store.update_attrs({"ours": 2})
    attrs = FeatureStore.open(store.path).attrs
    assert (attrs["theirs"], attrs["ours"]) == (1, 2)


def test_a_stopped_process_that_changes_the_store_is_named(store, other, monkeypatch):
    """A writer waits for ever, and does not say for whom."""
    monkeypatch.setattr(_locks, "PATIENCE", 0.3)
    assert other("lock = store._locks.structure(); lock.__enter__()") == "done"
    with pytest.raises(BlockingIOError, match=r"is being changed by .* End that process"):
        store.update_attrs({"a": 1})
    other.kill()
    store.update_attrs({"a": 1})


def test_a_reader_of_the_top_k_sees_no_row_that_is_being_written(store, monkeypatch):
    """Positions of a finished row with values of an unfinished one."""
    names = [f"topk/k/{leaf}" for leaf in ("index", "value")]
    for name, kind in zip(names, (np.int32, np.float32), strict=True):
        store.require_array(name, (2,), kind, ("image", "k"))
    reader, real = FeatureStore.open(store.path), FeatureStore._read

    def slow(self, name, **options):
        values = real(self, name, **options)
        if name == names[0]:
            store.write_rows(names[0], 0, np.tile(np.array([0, 2], np.int32), (CHUNK, 1)))
            store.write_rows(names[1], 0, np.full((CHUNK, 2), 0.5, np.float32))
        return values

    monkeypatch.setattr(FeatureStore, "_read", slow)
    assert reader.probability_array("k").nnz == 0
    monkeypatch.undo()
    assert reader.probability_array("k").nnz == 2 * CHUNK


def test_a_reader_sees_no_row_that_is_being_written(store, monkeypatch):
    """A row is read before its data is whole, and found marked a moment later."""
    store.write_rows(ROWS, 0, rows(0.1))
    reader = FeatureStore.open(store.path)
    real = type(reader)._read

    def slow(self, name, **options):
        values = real(self, name, **options)
        if name == ROWS:
            # All rows are written and marked after the reader took the values.
            store.write_rows(ROWS, 8, rows())
        return values

    monkeypatch.setattr(type(reader), "_read", slow)
    values = reader.probability_array("m")
    assert (values[:8] == np.float32(0.1)).all()
    assert np.isnan(values[8:]).all()


SETTERS = {
    "fold": (lambda s: s.set_fold(np.arange(N_IMAGES) % 2), lambda s: s.fold),
    "labels": (
        lambda s: s.set_labels([["b", "c"]] * N_IMAGES),
        lambda s: s.labels.toarray(),
    ),
    "split_group": (lambda s: s.set_split_group(["g"] * N_IMAGES), lambda s: s.split_group),
    "metadata": (
        lambda s: s.add_metadata(pd.DataFrame({"year": np.ones(N_IMAGES, int)}, IDS)),
        lambda s: s.metadata["year"].to_numpy(),
    ),
}


@pytest.mark.parametrize("what", SETTERS)
def test_what_is_set_is_the_old_or_the_new_at_every_step(store, tmp_path, what, monkeypatch):
    """A kill between two renames or two files leaves half of the old and half of the new."""
    change, read = SETTERS[what]
    before = read(store)
    goal = FeatureStore.from_arrays(
        tmp_path / "goal", image_ids=IDS, classes=CLASSES, probabilities={}
    )
    change(goal)
    shutil.copytree(store.path, tmp_path / "first")
    after, n_steps = read(goal), 0
    while die_after(store.path, change, n_steps, monkeypatch):
        for mode in ("r", "r+"):
            now = read(FeatureStore.open(store.path, mode))
            assert now.tolist() in (before.tolist(), after.tolist()), n_steps
        shutil.rmtree(store.path)
        shutil.copytree(tmp_path / "first", store.path)
        n_steps += 1
    assert n_steps >= 3
    assert read(FeatureStore.open(store.path)).tolist() == after.tolist()
    FeatureStore.open(store.path, "r+")
    assert not list(store.path.glob(".partial"))


def die_after(path, change, n_steps, monkeypatch):
    """Change the store, dying at a rename: each file and each node takes its place by one."""
    count = [0.0]

    def counted(real, weight=1.0):
        def step(*arguments, **options):
            count[0] += weight
            if count[0] > n_steps:
                raise Killed
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(Path, "replace", counted(Path.replace, 0.25))
        patch.setattr(Path, "rename", counted(Path.rename))
        # A killed process removes nothing.
        patch.setattr(_zarr, "remove", lambda *paths: [])
        try:
            change(FeatureStore.open(path, "r+"))
        except Killed:
            return True
    return False


def test_a_killed_create_leaves_nothing_once_it_runs_again(tmp_path):
    """Every killed run leaves a hidden folder of gigabytes; or a running one's is removed."""
    code = textwrap.dedent(
        """
        import sys, time
        from features import _layout
        from features.store import FeatureStore
        def seal(*arguments):
            print("building", flush=True)
            time.sleep(60)
        _layout.seal = seal
        FeatureStore.create(sys.argv[1], image_ids=["i"], classes=["a"])
        """
    )
    path = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "building\n"
    running = {file.name for file in tmp_path.iterdir()}
    assert len(running) == 2
    assert _locks.clean_leftovers(path) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    FeatureStore.create(path, image_ids=["i"], classes=["a"])
    assert {file.name for file in tmp_path.iterdir()} == {"store"}


def test_left_over_files_of_nobody_are_removed_after_a_day(tmp_path):
    """Files of an earlier version, or of a system without locks, stay for ever."""
    old, young, other = (tmp_path / f".{n}.partial" for n in ("a.csv.1", "a.csv.2", "b.csv.1"))
    for file in (old, young, other):
        file.write_text("half")
    for file in (old, other):
        os.utime(file, (time.time() - 90_000,) * 2)
    assert _locks.clean_leftovers(tmp_path / "a.csv") == [old]
    assert young.exists()
    assert other.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="fork and locks of a POSIX system")
def test_a_kill_inside_of_two_temporary_names_leaves_nothing(tmp_path):
    """A command writes a model into a folder of its own, killed as the model is written."""
    process = os.fork()
    if not process:
        with (
            _locks.leased_name(tmp_path / "model.x") as outer,
            _locks.leased_name(outer) as inner,
        ):
            inner.mkdir()
            assert outer.suffix == inner.suffix == ".x"
            (tmp_path / "made").touch()
            os._exit(0)
    os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 3  # one lock, one folder, the mark
    _locks.clean_leftovers(tmp_path / "model.x")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_temporary_name_in_use_outlives_one_inside_of_it(tmp_path):
    """The model is written, and takes the folder that it belongs to with it."""
    with _locks.leased_name(tmp_path / "model") as outer:
        outer.mkdir()
        with _locks.leased_name(outer) as inner:
            inner.mkdir()
            inner.rename(outer / "inside")
        assert (outer / "inside").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_links_in_a_store_lead_nowhere(store, tmp_path):
    """Opening a stranger's store for writing makes and moves files elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "labels.old").write_text("mine")
    (store.path / ".partial").symlink_to(victim)
    FeatureStore.open(store.path, "r+")
    assert not (store.path / ".partial").is_symlink()
    (store.path / ".lock").unlink()
    (store.path / ".lock").symlink_to(victim / "made")
    with pytest.raises(ValueError, match=r"\.lock is a link, which no store of ours holds"):
        FeatureStore.open(store.path, "r+")
    assert [path.name for path in victim.iterdir()] == ["labels.old"]
