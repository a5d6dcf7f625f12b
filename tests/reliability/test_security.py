"""Opening what a stranger sent runs nothing, reads nothing else, and ends."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stacker.estimator import PairStacker
from stacker.persistence import read_folder, write_folder

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file
    for package in ("cnn_extract", "features", "stacker")
    for file in (ROOT / package).rglob("*.py")
)


class Canary:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').write('ran')",)


@pytest.fixture
def canary(tmp_path):
    """Give the file that code from a model would write."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node


@pytest.mark.parametrize("package", ["cnn_extract", "features", "stacker"])
def test_no_source_runs_what_a_file_says(package):
    """`eval`, pickles or a shell make a file into a program."""
    found = [
        (file, *call)
        for file in SOURCES
        if file.is_relative_to(ROOT / package)
        for call in calls(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert len(found) > 300
    for file, name, keywords, node in found:
        where = f"{file}:{node.lineno}"
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), where
        assert keywords.get("shell", "False") == "False", where
        if name.endswith("torch.load"):
            assert keywords.get("weights_only") == "True", where
        if name.endswith(("np.load", "np.save", "numpy.load")):
            assert keywords.get("allow_pickle", "False") == "False", where
        assert not name.endswith((".extractall", ".unpack_archive", "tempfile.mktemp")), where
        assert not name.endswith(("read_pickle", "to_pickle", "marshal.loads", ".extract")), where
        assert name not in ("compile", "__import__", "pd.eval"), where
        if name.endswith("Image.open"):  # else it opens PostScript by running a program
            assert "formats" in keywords, where


def test_arrays_with_objects_are_refused(tmp_path, canary):
    """A pickle inside an .npy file runs when the model is opened."""
    folder = tmp_path / "m"
    write_folder(folder, {"values": np.ones(3)}, {})
    evil = np.array([Canary(canary)], dtype=object)
    np.save(folder / "array-0000.npy", evil, allow_pickle=True)
    reseal(folder)
    with pytest.raises(ValueError, match=r"allow_pickle=False"):
        read_folder(folder)
    (folder / "array-0000.npy").write_bytes(pickle.dumps(Canary(canary)))
    reseal(folder)
    with pytest.raises(ValueError, match=r"damaged|pickle"):
        read_folder(folder)


def reseal(folder):
    """Write the checksums that a malicious author would write."""
    from features._seal import file_sha256

    names = [file for file in folder.iterdir() if file.name != "checksums.json"]
    sums = {file.name: file_sha256(file) for file in names}
    (folder / "checksums.json").write_text(json.dumps(sums))


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd", "a/../../secret.npy"])
def test_a_model_reads_no_file_outside_its_folder(tmp_path, name):
    """Opening a model reads the user's files into it."""
    np.save(tmp_path / "secret.npy", np.ones(3))
    folder = tmp_path / "m"
    write_folder(folder, {"values": np.ones(3)}, {})
    text = (folder / "model.json").read_text().replace("array-0000.npy", name)
    (folder / "model.json").write_text(text)
    reseal(folder)
    with pytest.raises(ValueError, match="names no file of the model"):
        read_folder(folder)


def test_a_link_out_of_the_model_folder_is_refused(tmp_path):
    """The same by a symbolic link."""
    np.save(tmp_path / "secret.npy", np.ones(3))
    folder = tmp_path / "m"
    write_folder(folder, {"values": np.ones(3)}, {})
    (folder / "array-0000.npy").unlink()
    (folder / "array-0000.npy").symlink_to(tmp_path / "secret.npy")
    reseal(folder)
    with pytest.raises(ValueError, match="link"):
        read_folder(folder)


BOOSTERS = {
    "lightgbm": {
        "no model": "hello",
        "empty": "",
        "endless tree": "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\n"
        "max_feature_idx=0\nfeature_names=a\ntree_sizes=100\n\nTree=0\nnum_leaves=2000000000\n",
        "loop": "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\n"
        "max_feature_idx=0\nobjective=binary\nfeature_names=a\nfeature_infos=[0:1]\n"
        "tree_sizes=300\n\nTree=0\nnum_leaves=2\nnum_cat=0\nsplit_feature=99\nsplit_gain=1\n"
        "threshold=0.5\ndecision_type=2\nleft_child=0\nright_child=0\nleaf_value=1 2\n"
        "leaf_weight=1 1\nleaf_count=1 1\ninternal_value=0\ninternal_weight=0\n"
        "internal_count=2\nis_linear=0\nshrinkage=1\n\nend of trees\n",
    },
    "xgboost": {
        "no JSON": "hello",
        "empty": "",
        "other JSON": '{"learner": []}',
        "deep": "[" * 100_000,
    },
}


def test_crafted_boosters_end_without_running_anything():
    """A C++ parser reads past its buffer, or walks a tree in a circle for ever."""
    code = textwrap.dedent(
        """
        import json, sys
        import numpy as np
        from stacker.boosters import BOOSTERS
        for name, texts in json.load(sys.stdin).items():
            for what, text in texts.items():
                try:
                    booster = BOOSTERS[name]({}, 1, 0).from_text(text)
                    booster.correction(np.zeros((1, 1), np.float32))
                    print(name, what, "was read")
                except ValueError as error:
                    print(name, what, "refused", str(error)[:19])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(BOOSTERS),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [f"{n} {what} refused the model's booster" for n in BOOSTERS for what in BOOSTERS[n]]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 90)
        + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,99999999999]}}'
        + b" " * 26,
        pickle.dumps({"a": 1}),
    ],
    ids=["empty", "short", "huge header", "no object", "outside", "pickle"],
)
def test_a_crafted_checkpoint_is_refused(tmp_path, data):
    """A header that lies makes a reader allocate everything, or read outside of the file."""
    pytest.importorskip("torch")
    from cnn_extract.train.checkpoint import load_progress

    (tmp_path / "last.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: it does not have its checksum"):
        load_progress(tmp_path)


def tensors(progress, **others):
    """Give a safetensors file with a note of a training run, and room for its checksum."""
    head = json.dumps({"__metadata__": {"progress": progress}, **others}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(4)


NOTE = {"stage": 0, "epoch": 1, "ema_steps": 0, "schedule": {}, "log": [], "checksum": "0" * 64}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        tensors(json.dumps({**NOTE, "optimiser": {}}), w={**ONE, "data_offsets": [0, 10**11]}),
        tensors(json.dumps({**NOTE, "optimiser": {}}), v=ONE, w=ONE),
        tensors(json.dumps({**NOTE, "optimiser": {}}), w={**ONE, "shape": [2**40, 2**40]}),
        tensors(json.dumps({**NOTE, "optimiser": {}}), w={**ONE, "dtype": "OBJECT"}),
        tensors("[" * 50_000 + json.dumps(NOTE), w=ONE),
        tensors(json.dumps([NOTE]), w=ONE),
        tensors(json.dumps(NOTE), w=ONE),
        tensors(json.dumps({**NOTE, "optimiser": {"__tensor__": "x"}}), w=ONE),
    ],
    ids=["outside", "overlap", "huge", "type", "deep", "list", "without", "no tensor"],
)
def test_a_crafted_checkpoint_with_its_checksum_is_refused(tmp_path, data):
    """Whoever crafts a file gives it the right checksum: its readers are on their own."""
    pytest.importorskip("torch")
    from cnn_extract.train.checkpoint import load_progress
    from features._seal import seal_file

    path = tmp_path / "last.safetensors"
    path.write_bytes(data)
    seal_file(path)
    with pytest.raises(ValueError, match=r"last\.safetensors is not what `cnn-extract train`"):
        load_progress(tmp_path)


def test_a_model_with_missing_parts_says_so(tmp_path):
    """A crafted model.json ends in a KeyError from somewhere inside."""
    write_folder(tmp_path / "m", {"name": "x"}, {})
    with pytest.raises(ValueError, match="holds no fitted PairStacker"):
        PairStacker.load(tmp_path / "m")


def test_the_report_escapes_what_users_wrote(tmp_path, slice_arrays):
    """A class called <script> runs in the browser of whoever opens the report."""
    from features.schema import Stack
    from stacker.report import write_report

    evil = "<script>alert('x')</script>"
    names = np.array([f"{evil}{k}" for k in range(6)])
    columns = np.sort(np.argsort(-slice_arrays["labels"].sum(axis=0))[:6])
    stack = Stack(
        {f"{evil}{m}": slice_arrays["probabilities"][m][:150][:, columns] for m in (0, 3)},
        image_ids=[f"{evil}{k}" for k in range(150)],
        classes=names,
    )
    labels = slice_arrays["labels"][:150][:, columns]
    model = PairStacker(cv=2, random_state=0, n_jobs=1, blocks=("probabilities",)).fit(
        stack, labels
    )
    out = tmp_path / "r.html"
    write_report(out, model, train_labels=labels, title=evil, command=f"stacker {evil}")
    page = out.read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page or "\\u003cscript" in page


@pytest.mark.skipif(os.name == "nt", reason="permissions of a POSIX system")
@pytest.mark.parametrize("what", ["file", "folder", "table", "model", "store"])
def test_temporary_files_are_private_until_they_are_done(tmp_path, what, monkeypatch):
    """Others on the machine read a model, or replace it, while it is being written."""
    from cnn_extract.tables import write_csv
    from features.store import FeatureStore
    from stacker._output import write_text

    make = {
        "file": lambda path: write_text(path, "done"),
        "folder": lambda path: write_folder(path, {"values": np.ones(3)}, {}),
        "table": lambda path: write_csv(pd.DataFrame({"a": [1]}), path),
        "model": lambda path: write_folder(path, {}, {"booster.txt": "tree"}),
        "store": lambda path: FeatureStore.create(path, image_ids=["i"], classes=["a"]),
    }
    out, seen = tmp_path / "out" / "x.csv", []

    def watched(real):
        def step(self, target):
            if Path(target) == out:  # The last moment before it has its name.
                beside = [path for path in out.parent.iterdir() if path != out]
                seen.extend((path.name, path.stat().st_mode & 0o077) for path in beside)
            return real(self, target)

        return step

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    before = os.umask(0)
    try:
        make[what](out)
    finally:
        os.umask(before)
    assert len(seen) == 2  # the lock, and the folder with all the rest
    assert all(mode == 0 and name.startswith(".x.csv.") for name, mode in seen), seen
    assert [path.name for path in out.parent.iterdir()] == ["x.csv"]


def test_no_source_makes_temporary_files_that_others_may_read():
    """A name that can be guessed, in a folder of everybody, is somebody's link already."""
    allowed = {"TemporaryDirectory", "TemporaryFile", "mkdtemp"}
    for file in SOURCES:
        for name, _, node in calls(ast.parse(file.read_text(encoding="utf-8"))):
            if name.startswith("tempfile."):
                assert name.split(".")[1] in allowed | {"gettempdir"}, f"{file}:{node.lineno}"
            assert "/tmp" not in name


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_predictions_that_lie_in_other_files_are_refused(tmp_path, kind):
    """An HDF5 file may name any file of the one who opens it as the place of its values."""
    h5py = pytest.importorskip("h5py")
    from features.importing import read_predictions

    secret, path = tmp_path / "secret", tmp_path / "p.h5"
    secret.write_bytes(bytes(16))
    with h5py.File(path, "w") as file:
        if kind == "external":
            file.create_dataset("p", (2, 2), "f4", external=[(str(secret), 0, 16)])
        else:
            with h5py.File(tmp_path / "other.h5", "w") as other:
                other["p"] = np.zeros((2, 2), np.float32)
            layout = h5py.VirtualLayout((2, 2), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "p", (2, 2))
            file.create_virtual_dataset("p", layout)
    with pytest.raises(ValueError, match=r"p\.h5: the values of array 'p' lie in other files"):
        read_predictions(path)
