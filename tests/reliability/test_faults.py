"""A full disk, no permission, a failing rename: no half file is taken for a whole one."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from features.assemble import PairFeatures
from features.parquet import PairRows, read_pairs, write_pairs
from features.schema import Stack
from features.store import FeatureStore
from stacker._output import write_text
from stacker.persistence import read_folder, write_folder
from stacker.verify import verify
from tests.reliability.makers import arrays_of, leftovers, remove

N_IMAGES, CLASSES = 24, ["a", "b", "c"]
IDS = [f"i{k:02}" for k in range(N_IMAGES)]
VALUES = np.random.default_rng(0).random((N_IMAGES, 3)).astype(np.float32)
NOBODY, SMALL = 65534, 200 * 1024
ERRORS = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "no permission": PermissionError(errno.EACCES, "Permission denied"),
}


def make_store(path):
    """Make a store; an unfinished one goes on where it stopped."""
    if path.exists():
        store = FeatureStore.open(path, "r+")
    else:
        store = FeatureStore.create(path, image_ids=IDS, classes=CLASSES, chunk_images=8)
    store.set_labels([["a"]] * N_IMAGES)
    store.set_fold(np.arange(N_IMAGES) % 2)
    store.add_metadata(pd.DataFrame({"year": np.arange(N_IMAGES)}, IDS))
    store.require_array("probabilities/m", (3,), np.float32, ("image", "class"))
    for start in range(0, N_IMAGES, 8):
        if not store.written("probabilities/m")[start]:
            store.write_rows("probabilities/m", start, VALUES[start : start + 8])


def make_pairs(path):
    stack = Stack({"a": VALUES, "b": VALUES[::-1].copy()}, classes=CLASSES)
    labels = csr_array((VALUES > 0.6).astype(np.int8))
    fold = np.arange(N_IMAGES) % 4
    features = PairFeatures(blocks=("probabilities",), candidates=2).fit(stack, labels, fold)
    rows = PairRows(features, stack, labels, np.ones(N_IMAGES, dtype=bool), fold)
    write_pairs(path, rows, settings={}, rows_per_part=20)


def make_model(path):
    write_folder(path, {"values": VALUES, "name": "x"}, {"booster.txt": "tree"})


def make_text(path):
    write_text(path, "image_id,labels\n" * 100)


def make_checkpoint(path):
    torch = pytest.importorskip("torch")
    from cnn_extract.train.checkpoint import Progress, save_model, save_progress

    weights = {"w": torch.from_numpy(VALUES.copy())}
    save_progress(path, Progress(epoch=1, weights=weights))
    save_model(path, weights, {"fold": 0})


def files_of(path):
    if path.is_file():
        return path.read_bytes()
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


MAKERS = {
    "store": (make_store, arrays_of),
    "pairs": (make_pairs, files_of),
    "model": (make_model, files_of),
    "text": (make_text, files_of),
    "checkpoint": (make_checkpoint, files_of),
}
POINTS = {
    "rename": [(Path, "rename"), (Path, "replace"), (os, "replace"), (os, "rename")],
    "flush": [(os, "fsync")],
}


def fail_at(monkeypatch, points, n_steps, error, work):
    """Do the work, with an error at one step; whether there was such a step."""
    count = [0]

    def counted(real):
        def step(*arguments, **options):
            count[0] += 1
            if count[0] == n_steps:
                raise error
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for owner, name in points:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            work()
        except OSError as found:
            assert found is error or found.errno == error.errno  # noqa: PT017
    return count[0] >= n_steps


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    # A store has a hundred steps, each a store to make: minutes.
    "what",
    [pytest.param(w, marks=pytest.mark.slow) if w == "store" else w for w in MAKERS],
)
def test_a_fault_at_every_step_leaves_nothing_half(what, point, tmp_path, monkeypatch):
    """The disk fills up: what is there afterwards is whole, or is begun again."""
    make, read = MAKERS[what]
    whole, out = tmp_path / "whole", tmp_path / "out" / "x"
    make(whole)
    expected, n_steps = read(whole), 1
    errors = list(ERRORS.values())
    while fail_at(monkeypatch, POINTS[point], n_steps, errors[n_steps % 2], lambda: make(out)):
        check_half(what, out)
        if not done(what, out, expected):
            make(out)
        assert read(out) == expected, n_steps
        assert leftovers(out.parent) == [], n_steps
        shutil.rmtree(out.parent)
        n_steps += 1
    assert n_steps > 1 or (what, point) == ("text", "flush")


@pytest.mark.parametrize("place", ["_zarr.consolidate", "the second rename"])
def test_a_change_that_fails_at_its_end_leaves_no_old_metadata(place, tmp_path, monkeypatch):
    """Other readers saw the shapes of labels that were gone, or no labels at all."""
    make_store(tmp_path / "x")
    store, error = FeatureStore.open(tmp_path / "x", "r+"), ERRORS["full disk"]

    def fail(*arguments, **options):
        raise error

    real = Path.rename
    with monkeypatch.context() as patch:
        if place == "_zarr.consolidate":
            patch.setattr(f"features.{place}", fail)
        else:
            patch.setattr(
                Path, "rename", lambda a, b: fail() if a.match(".partial/labels") else real(a, b)
            )
        with pytest.raises(OSError, match="No space left"):
            store.set_labels([["a", "b"]] * N_IMAGES)
    assert [part.problems for part in verify(tmp_path / "x")] == [[]]
    assert (tmp_path / "x" / "labels" / "indptr").exists()
    assert FeatureStore.open(tmp_path / "x").labels.nnz in (N_IMAGES, 2 * N_IMAGES)


def done(what, out, expected):
    """Whether the work came to its end all the same: a flush at the very end failed."""
    return what in ("model", "pairs", "text") and out.exists() and files_of(out) == expected


def check_half(what, out):
    """Read what a failed run left: it says that it is not whole, or it is."""
    if not out.exists():
        return
    if what == "store":
        store = FeatureStore.open(out)
        if "probabilities/m" in store.array_names:
            written = store.written("probabilities/m")
            np.testing.assert_array_equal(store._read("probabilities/m")[written], VALUES[written])
        assert all(part.problems == [] for part in verify(out))
    elif what == "pairs" and (out / "_pairs.parquet").exists():
        with pytest.raises(ValueError, match="is not complete"):
            list(read_pairs(out))
    elif what == "model":
        read_folder(out)


@contextlib.contextmanager
def without_rights():
    """Let root be nobody for a while: root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="permissions of a POSIX system")
@pytest.mark.parametrize("what", MAKERS)
def test_a_read_only_folder_is_an_error_that_names_it(what, tmp_path):
    """The last step of a night's run fails without a word of where."""
    make = MAKERS[what][0]
    make(tmp_path / "before")  # imports what it needs
    locked = Path(tempfile.mkdtemp())
    locked.chmod(0o555)
    try:
        with without_rights(), pytest.raises(PermissionError, match=locked.name):
            make(locked / "x")
    finally:
        shutil.rmtree(locked)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Mount a file system of 200 kB, where root may."""
    place = tmp_path_factory.mktemp("small")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(place)]
    if os.name == "nt" or os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("left", [0, 4096, 12288, 24576])
@pytest.mark.parametrize("what", MAKERS)
def test_a_full_disk_leaves_nothing_half(what, left, small, tmp_path):
    """The same on a real file system, which fails where no test thought of."""
    make, read = MAKERS[what]
    make(tmp_path / "whole")
    expected, out = read(tmp_path / "whole"), small / "x"
    (small / "rest").write_bytes(bytes(SMALL - left))
    try:
        try:
            make(out)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            check_half(what, out)
        (small / "rest").unlink()
        if not done(what, out, expected):
            make(out)
        assert read(out) == expected
        assert leftovers(small) == []
    finally:
        for path in small.iterdir():
            remove(path)


def test_activations_take_their_place_on_the_disk_at_once(small):
    """A mapped page without a block ends the process with SIGBUS, and no message."""
    pytest.importorskip("torch")
    from cnn_extract.train.trunk import reserve

    array = np.lib.format.open_memmap(small / "kept.npy", "w+", dtype=np.float32, shape=(SMALL,))
    del array  # a mapped file keeps the file system busy
    with pytest.raises(OSError, match="No space left"):
        reserve(small / "kept.npy")
    (small / "kept.npy").unlink()
