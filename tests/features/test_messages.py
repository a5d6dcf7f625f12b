"""What each refusal of the features says; the longer ones are tested beside what they guard."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from features import FeatureStore, Stack
from features._checks import as_names
from features._label_files import LabelFile, read_label_file, read_names
from features._predictions import read_predictions
from features._seal import seal_file
from features._specs import parse_blocks
from features._zarr import MANY_NAMES
from features.assemble import PairFeatures, check_training
from features.blocks.image_columns import by_name
from features.dask import _CLIENTS, Images, connect
from features.folds import make_folds
from features.importing import import_predictions
from features.parquet import PairRows, pair_schema
from features.verify import _check_labels, verify_store

N = 6
PROBS = np.linspace(0, 1, 2 * N).reshape(N, 2).astype(np.float32)
LABELS = csr_array((PROBS > 0.5).astype(np.int8))
IDS = list("uvwxyz")


def labels_of(lists):
    return LabelFile("labels.csv", np.array(IDS), lists, None)


def fitted():
    """Features that read image statistics."""
    frame = pd.DataFrame({"size": np.arange(N, dtype=np.float32)}, IDS)
    stack = Stack({"m": PROBS}, image_ids=IDS, image_stats=frame)
    features = PairFeatures(blocks=("image_stats",), candidates=None)
    return features.fit(stack, LABELS, np.arange(N) % 2)


def import_of(values, **options):
    """Import predictions of two columns for six images."""
    lines = [f"{name},{'ab'[k % 2]}" for k, name in enumerate(IDS)]
    Path("labels.csv").write_text("\n".join(["image_id,labels", *lines]))
    return import_predictions("store", {"m": values}, "labels.csv", check_order=False, **options)


class Idle:
    """A client of a cluster without workers."""

    status, scheduler = "running", SimpleNamespace(address="tcp://somewhere:1")

    def scheduler_info(self, n_workers):
        return {"workers": {}}


CALLS = {
    "long": (lambda: as_names(["a" * 100_000], "class"), "a class may have at most .* begins 'aaa"),
    "nul": (
        lambda: as_names(np.array(["a\0b"], object), "class"),
        r"a class may not hold a NUL character; found",
    ),
    "missing": (lambda: as_names(["a", None], "image id"), r"every image id must be given.*\[1\]"),
    "labels and columns": (
        lambda: labels_of([["a"]] * N).guess_classes(3),
        "names 1 labels, the predictions have 3 columns. Give the columns' names",
    ),
    "strange labels": (
        lambda: labels_of([["a"]] * N).matrix(np.array(IDS), np.array(["b"])),
        "has 1 labels that are no class of the predictions, first: 'a'; these are 'b'",
    ),
    "same block": (lambda: parse_blocks("ranks,ranks"), "--blocks names 'ranks' more than once"),
    "option": (
        lambda: parse_blocks("combinations:order=two"),
        "expected int, got 'two'",
    ),
    "no fold": (
        lambda: check_training(Stack({"m": PROBS}, image_ids=IDS), LABELS, np.arange(N) - 1),
        "every training image must have a fold; 1 do not, first: image 'u' has fold -1",
    ),
    "lost input": (
        lambda: fitted()._check_same(Stack({"m": PROBS}, image_ids=IDS)),
        "block 'image_stats' needs .*, which this stack does not have",
    ),
    "lost column": (
        lambda: by_name(pd.DataFrame({"a": [1.0]}), ["a", "b"], "metadata"),
        r"metadata of the stack lacks columns that it was fitted on, first: \['b'\]",
    ),
    "one fold": (lambda: make_folds(LABELS, 1), "n_folds must be an integer of at least 2; got 1"),
    "groups": (
        lambda: make_folds(LABELS, 3, split_group=["g"] * N),
        "3 folds need at least as many split groups; there are 1. Use fewer folds",
    ),
    "no client": (lambda: connect("current"), "dask='current' needs an active client: make one"),
    "no worker": (
        lambda: connect("tcp://somewhere:1"),
        "the cluster tcp://somewhere:1 has no worker. Start some",
    ),
    "infinite": (
        lambda: import_of(np.where(PROBS == 1, np.inf, PROBS)),
        "range: model 'm' has NaN or infinity, first: image 'z', class 'b'",
    ),
    "percent": (
        lambda: import_of(PROBS * 100),
        "values from 0 to 100, not probabilities: divide percentages by 100 first",
    ),
    "logarithms": (
        lambda: import_of(np.log(PROBS + 0.01) - 1),
        "not probabilities: exponentiate log-probabilities first",
    ),
    "shared images": (
        lambda: import_of(PROBS, test={"m": PROBS[:1]}, test_ids=["z"]),
        "ids: 1 images are among the labelled and the test images, first: 'z'",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_the_refusal_names_the_rule_and_the_value(what, tmp_path, monkeypatch):
    """A message that leaves out the value sends its reader to the debugger."""
    if what in ("no client", "no worker"):
        pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(_CLIENTS, "tcp://somewhere:1", Idle())
    call, message = CALLS[what]
    with pytest.raises(ValueError, match=message):
        call()


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image_id\na\n", {}, r"must have a column of image ids and one of labels; got \['image"),
        ("image_id,tags\na,x\n", {"label_column": "labels"}, r"has no column 'labels'; it has \["),
    ],
)
def test_a_label_file_without_its_columns_is_named(tmp_path, text, options, message):
    """The ids are read as labels, or the other way round."""
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_file(tmp_path / "labels.csv", **options)


def test_names_that_are_no_text_name_their_file(tmp_path):
    """A list of ids in Latin-1 ends in a codec's message without a file."""
    (tmp_path / "ids.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"ids\.txt cannot be read: .* Save it as UTF-8"):
        read_names(tmp_path / "ids.txt")


def test_an_array_that_a_file_does_not_have_is_refused(tmp_path):
    """A misspelt key takes the first array instead."""
    np.savez(tmp_path / "p.npz", a=PROBS)
    with pytest.raises(ValueError, match=r"p\.npz has no array 'b'; it has \['a'\]"):
        read_predictions(f"{tmp_path / 'p.npz'}:b")


def test_a_table_without_a_column_is_refused(tmp_path):
    """A frame of nothing but an index, written without it."""
    pd.DataFrame(index=range(2)).to_parquet(tmp_path / "p.parquet", index=False)
    with pytest.raises(ValueError, match=r"p\.parquet has no column: the first must hold the im"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize(("name", "other"), [("p.npy", "npz"), ("p.npz", "npy")])
def test_an_array_and_a_bundle_are_told_apart(tmp_path, name, other):
    """A file that was renamed ends in an AttributeError."""
    with (tmp_path / name).open("wb") as file:
        np.savez(file, a=PROBS) if other == "npz" else np.save(file, PROBS)
    with pytest.raises(ValueError, match=rf"is (a bundle|one array).*: name it \.{other}"):
        read_predictions(tmp_path / name)


def test_a_checksum_needs_a_place(tmp_path):
    """A checkpoint without one would be taken for intact."""
    header = json.dumps({"__metadata__": {}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="has no place for a checksum in its header"):
        seal_file(tmp_path / "x.safetensors")


def test_two_columns_of_one_name_are_refused():
    """A Parquet file with two columns of one name opens nowhere else."""
    stack = Stack({"m": PROBS}, image_ids=IDS)
    features = PairFeatures(blocks=("probabilities",), candidates=None)
    features.fit(stack, LABELS, np.arange(N) % 2)
    features.columns_ = [*features.columns_, features.columns_[0]]
    rows = PairRows(features, stack, LABELS, np.ones(N, bool), np.arange(N))
    with pytest.raises(ValueError, match=r"must have different names; 'p:m' stands twice. Rename"):
        pair_schema(rows)


# Stores -----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Make a small store in chunks of four images."""
    return FeatureStore.from_arrays(
        tmp_path / "store",
        image_ids=IDS,
        classes=["a", "b"],
        probabilities={"m": PROBS},
        labels=[["a"]] * N,
        chunk_images=4,
    )


def changed_metadata(store, name, **changes):
    """Change an array's metadata as an editor would, in its own file and in the root's copy."""
    for place in (store.path, store.path / name):
        document = json.loads((place / "zarr.json").read_text())
        if "consolidated_metadata" in document:
            document["consolidated_metadata"]["metadata"][name].update(changes)
        else:
            document.update(changes)
        (place / "zarr.json").write_text(json.dumps(document))
    return FeatureStore.open(store.path)


def test_rows_are_written_in_whole_chunks(store):
    """Two writers that share a chunk lose each other's rows."""
    opened = FeatureStore.open(store.path, "r+")
    opened.require_array("probabilities/n", (2,), np.float32, ("image", "class"))
    with pytest.raises(ValueError, match=r"in whole chunks of 4 images; 0\.\.2 cuts one. Start"):
        opened.write_rows("probabilities/n", 0, PROBS[:3])


def test_skipped_images_are_told_from_unfinished_ones(store):
    """The user waits for a run that has ended."""
    opened = FeatureStore.open(store.path, "r+")
    opened.require_array("probabilities/n", (2,), np.float32, ("image", "class"))
    opened.write_rows("probabilities/n", 0, PROBS[:4])
    opened.set_errors([5], "cannot read")
    opened.write_rows("probabilities/n", 4, PROBS[4:])
    with pytest.raises(ValueError, match=r"1 images were skipped.*'z'.*store\.without_skipped\(\)"):
        opened.to_stack()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension_names": None}, "probabilities/m in .* is damaged: it is no array with named"),
        ({"shape": [5, 2]}, "is damaged: its axis 'image' has another length than the store, 6"),
        ({"shape": [6, 3]}, "is damaged: its axis 'class' has another length than the store, 2"),
    ],
)
def test_an_array_of_other_sizes_is_damaged(store, changes, message):
    """Rows of one image are read as those of the next."""
    with pytest.raises(ValueError, match=message):
        changed_metadata(store, "probabilities/m", **changes).probability_array("m")


def test_names_that_no_file_can_hold_are_refused(store):
    """One changed digit fills the memory with empty names."""
    with pytest.raises(ValueError, match=r"names cannot stand in [\d,]+ bytes"):
        changed_metadata(store, "image_id", shape=[MANY_NAMES * 1000])


def test_a_label_of_no_class_is_found(store):
    """An index past the last class reads another class's name."""
    labels = LABELS.copy()
    labels.indices[0] = 7

    class Changed:
        n_classes, labels_known, image_ids = 2, np.ones(N, bool), store.image_ids

    Changed.labels = labels
    with pytest.raises(ValueError, match="a label is of no class: there are 2"):
        _check_labels(Changed)
    assert all(not part.problems for part in [verify_store(store.path)])


def test_a_table_of_labels_names_what_is_no_class(tmp_path):
    """A label that was misspelt is left out of training without a word."""
    (tmp_path / "m.csv").write_text("image_id,a,b\ni,0.5,0.1\n")
    (tmp_path / "labels.csv").write_text("image_id,labels\ni,a bb\n")
    message = re.escape("image 'i' has labels that are no class column: 'bb'; 1 images have such")
    with pytest.raises(ValueError, match=message):
        FeatureStore.from_csv(
            tmp_path / "s", {"m": tmp_path / "m.csv"}, labels=tmp_path / "labels.csv"
        )


def test_on_dask_images_come_in_the_order_of_the_store(store):
    """Workers read whole chunks: shuffled rows would be other images' rows."""
    with pytest.raises(ValueError, match="on Dask a store's images must be in the order of the"):
        Images.of_store(store, np.array([2, 1]))
