"""The store: the contract on disk, alignment by name, resuming, and bad input."""

import json
import os
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from features import _zarr
from features.schema import Stack, as_stack
from features.store import FeatureStore

N_IMAGES, N_CLASSES, CHUNK = 23, 5, 8
IDS = np.array([f"folder/img {i}" for i in range(N_IMAGES)])
CLASSES = np.array(["tag::cat", "tag::dog", "culture::french", "culture::éire", "other"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def arrays(rng):
    """Everything a store can hold."""
    labels = (rng.random((N_IMAGES, N_CLASSES)) < 0.3).astype(np.int8)
    return {
        "image_ids": IDS,
        "classes": CLASSES,
        "class_parent": ["tag::dog", None, None, "culture::french", None],
        "probabilities": {
            "se101": rng.random((N_IMAGES, N_CLASSES)).astype(np.float32),
            "hub/lite0.linear": rng.random((N_IMAGES, N_CLASSES)).astype(np.float16),
        },
        "labels": labels,
        "fold": rng.integers(0, 3, N_IMAGES),
        "split_group": np.array([f"g{i // 2}" for i in range(N_IMAGES)]),
        "embeddings": {"hub/lite0": rng.standard_normal((N_IMAGES, 7)).astype(np.float16)},
        "imagenet_logits": {"hub/lite0": rng.standard_normal((N_IMAGES, 9)).astype(np.float16)},
        "image_stats": pd.DataFrame(rng.random((N_IMAGES, 2)), IDS, ["mean", "längste"]),
        "metadata": pd.DataFrame({"year": np.arange(N_IMAGES), "country": "fr"}, IDS),
        "attrs": {"source": "test"},
        "chunk_images": CHUNK,
    }


@pytest.fixture
def store(arrays, tmp_path):
    return FeatureStore.from_arrays(tmp_path / "store", **arrays)


@pytest.fixture
def empty(tmp_path):
    """Make a store without predictions."""
    return make_empty(tmp_path / "empty")


def make_empty(path):
    return FeatureStore.create(path, image_ids=IDS, classes=CLASSES, chunk_images=CHUNK)


def test_everything_that_goes_in_comes_out(arrays, store):
    """A store that changes values would poison every later step."""
    store = FeatureStore.open(store.path)
    assert store.models == ["hub/lite0.linear", "se101"]
    for model, values in arrays["probabilities"].items():
        assert store.probability_array(model).dtype == values.dtype
        frame = store.probabilities(model)
        np.testing.assert_array_equal(frame.to_numpy(), values)
        assert frame.index.tolist() == IDS.tolist()
        assert frame.columns.tolist() == CLASSES.tolist()
    np.testing.assert_array_equal(store.labels.toarray(), arrays["labels"])
    np.testing.assert_array_equal(store.fold, arrays["fold"])
    np.testing.assert_array_equal(store.split_group, arrays["split_group"])
    np.testing.assert_array_equal(store.embeddings("hub/lite0"), arrays["embeddings"]["hub/lite0"])
    np.testing.assert_array_equal(
        store.imagenet_logits("hub/lite0"), arrays["imagenet_logits"]["hub/lite0"]
    )
    pd.testing.assert_frame_equal(
        store.image_stats, arrays["image_stats"].astype("float32"), check_names=False
    )
    assert store.metadata["year"].tolist() == arrays["metadata"]["year"].tolist()
    assert set(store.metadata["country"]) == {"fr"}
    assert store.labels_known.all()
    assert store.label_space.parent_names == arrays["class_parent"]
    assert store.class_group.tolist() == ["tag", "tag", "culture", "culture", ""]
    assert store.attrs["source"] == "test"
    assert (store.n_images, store.n_classes) == (N_IMAGES, N_CLASSES)


def test_to_stack_equals_a_stack_of_the_arrays(arrays, store):
    """A model fitted on a store would differ from one fitted on the same arrays."""
    stack = as_stack(FeatureStore.open(store.path))
    expected = Stack(
        {m: arrays["probabilities"][m] for m in stack.models},
        **{k: arrays[k] for k in ("image_ids", "classes", "class_parent", "embeddings")},
        image_stats=arrays["image_stats"].astype("float32"),
        imagenet_logits=arrays["imagenet_logits"],
        metadata=arrays["metadata"],
    )
    assert stack.models == expected.models
    assert stack.label_space == expected.label_space
    for kind in ("probabilities", "embeddings", "imagenet_logits"):
        for name, values in getattr(expected, kind).items():
            np.testing.assert_array_equal(getattr(stack, kind)[name], values)
    pd.testing.assert_frame_equal(stack.image_stats, expected.image_stats)
    assert store.to_stack(["se101"]).models == ["se101"]


def test_defaults_of_what_is_not_given(empty):
    """Readers would have to handle arrays that are sometimes missing."""
    assert empty.models == []
    assert empty.labels.shape == (N_IMAGES, N_CLASSES)
    assert empty.labels.nnz == 0
    assert not empty.labels_known.any()
    assert (empty.fold == -1).all()
    assert empty.split_group.tolist() == IDS.tolist()
    assert (empty.errors == "").all()
    assert empty.metadata is None
    assert empty.image_stats is None


def test_metadata_keeps_its_kinds(empty):
    """Numbers would come back as text, categories as objects."""
    frame = pd.DataFrame(
        {
            "whole": np.arange(N_IMAGES, dtype=np.int32),
            "share": np.linspace(0, 1, N_IMAGES),
            "flag": np.arange(N_IMAGES) % 2 == 0,
            "nullable": pd.array([None, *range(N_IMAGES - 1)], dtype="Int64"),
            "whole nullable": pd.array(range(N_IMAGES), dtype="Int64"),
            "text": [f"line\n{i}" for i in range(N_IMAGES)],
            "a/b": pd.Categorical(["x", "y", *["x"] * (N_IMAGES - 2)]),
            "gaps": [None, "é", *[""] * (N_IMAGES - 2)],
            "when": pd.Timestamp("2020-02-03"),
        },
        index=IDS,
    )
    empty.add_metadata(frame.iloc[::-1])
    back = empty.metadata
    assert sorted(back.columns) == sorted(frame.columns)
    for name in ("whole", "share", "flag"):
        assert back[name].dtype == frame[name].dtype
        np.testing.assert_array_equal(back[name], frame[name])
    assert np.isnan(back["nullable"].iloc[0])
    assert back["nullable"].iloc[1:].tolist() == list(range(N_IMAGES - 1))
    assert back["whole nullable"].tolist() == list(range(N_IMAGES))
    assert back["text"].tolist() == frame["text"].tolist()
    assert back["a/b"].tolist() == frame["a/b"].tolist()
    assert isinstance(back["a/b"].dtype, pd.CategoricalDtype)
    assert back["gaps"].tolist()[:2] == ["", "é"]
    assert back["when"].iloc[0].startswith("2020-02-03")


def test_a_column_of_metadata_is_replaced(empty):
    """A second add would fail or leave the old values."""
    empty.add_metadata(pd.DataFrame({"a": range(N_IMAGES)}, index=IDS))
    empty.add_metadata(pd.DataFrame({"a": "x", "b": 1.0}, index=IDS))
    assert empty.metadata["a"].unique().tolist() == ["x"]


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
def test_any_model_name_becomes_one_path_part_and_back(name):
    """A "/" in a name would make a group, two names one path."""
    part = _zarr.escape(name)
    assert _zarr.unescape(part) == name
    assert "/" not in part
    assert part not in {".", "..", "zarr.json", ""}
    assert not part.startswith("__")


@pytest.mark.parametrize(
    "model", ["timm/resnet50.a1", "..", ".", "__x", "zarr.json", "100%", "a%2Fb", "é ü", "topk"]
)
def test_strange_model_names_survive(model, empty, rng):
    """A model's predictions would be lost, or another's overwritten."""
    values = rng.random((N_IMAGES, N_CLASSES)).astype(np.float32)
    empty.add_probabilities(model, values)
    empty.add_embeddings(model, values)
    store = FeatureStore.open(empty.path)
    assert store.models == store.embedding_names == [model]
    np.testing.assert_array_equal(store.probability_array(model), values)
    assert store.is_complete(f"probabilities/{model}")


def test_layout_and_attributes_are_the_contract(store):
    """Other programs read the store by these names."""
    root = zarr.open_group(store.path, mode="r")
    assert root.metadata.zarr_format == 3
    assert root.attrs["format"] == "pairstack-store"
    assert root.attrs["version"] == 1
    assert root.attrs["class_parent"][0] == "tag::dog"
    dims = {
        "class": ("class",),
        "class_group": ("class",),
        "stat": ("stat",),
        "image_id": ("image",),
        "fold": ("image",),
        "split_group": ("image",),
        "errors": ("image",),
        "labels/known": ("image",),
        "image_stats": ("image", "stat"),
        "probabilities/hub%2Flite0.linear": ("image", "class"),
        "embeddings/hub%2Flite0": ("image", "dim"),
        "metadata/year": ("image",),
        "written/probabilities/se101": ("image",),
        "written/image_stats": ("image",),
    }
    for path, expected in dims.items():
        assert root[path].metadata.dimension_names == expected
    types = {
        "fold": "int16",
        "labels/known": "bool",
        "image_stats": "float32",
        "embeddings/hub%2Flite0": "float16",
        "imagenet_logits/hub%2Flite0": "float16",
        "probabilities/se101": "float32",
        "written/image_stats": "bool",
    }
    for path, expected in types.items():
        assert root[path].dtype == expected
    assert json.loads((store.path / "zarr.json").read_text())["consolidated_metadata"]
    indptr, indices = root["labels/indptr"][...], root["labels/indices"][...]
    np.testing.assert_array_equal(indptr, store.labels.indptr)
    np.testing.assert_array_equal(indices, store.labels.indices)


def test_writing_and_xarray_emit_no_warning(arrays, tmp_path):
    """Users would read warnings about an unstable format on every run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = FeatureStore.from_arrays(tmp_path / "s", **arrays)
        store.add_probabilities("late", np.zeros((N_IMAGES, N_CLASSES)))
        store.set_errors([0], "broken")
        FeatureStore.open(store.path, "r+").to_stack  # noqa: B018
        root = xr.open_zarr(store.path).load()
        models = xr.open_zarr(store.path, group="probabilities").load()
    assert set(root.sizes) == {"image", "class", "stat"}
    assert set(root.coords) == {"class", "stat", "image_id"}
    assert root["image_id"].values.tolist() == IDS.tolist()
    assert root["class"].values.tolist() == CLASSES.tolist()
    assert root["stat"].values.tolist() == ["mean", "längste"]
    assert dict(models.sizes) == {"image": N_IMAGES, "class": N_CLASSES}
    assert set(models) == {"se101", "hub%2Flite0.linear", "late"}
    np.testing.assert_array_equal(models["se101"], arrays["probabilities"]["se101"])


def test_xarray_sees_arrays_added_row_by_row(empty):
    """Consolidated metadata would lack what was added after the store was made."""
    empty.require_array("probabilities/m", (N_CLASSES,), "float32", ("image", "class"))
    assert list(xr.open_zarr(empty.path, group="probabilities")) == ["m"]
    empty.require_image_stats(["a"])
    assert xr.open_zarr(empty.path).sizes["stat"] == 1


def test_a_failed_store_leaves_nothing(arrays, tmp_path):
    """A half-made store would be taken for a whole one."""
    arrays["probabilities"]["bad"] = np.full((N_IMAGES, N_CLASSES), 7.0)
    with pytest.raises(ValueError, match="Apply a sigmoid"):
        FeatureStore.from_arrays(tmp_path / "s", **arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder", "store", "dangling link"])
def test_existing_paths_are_refused_and_untouched(kind, tmp_path):
    """A user's files would be overwritten."""
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
    elif kind == "store":
        make_empty(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="there exists; choose another path"):
        make_empty(path)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_path_that_appears_meanwhile_is_kept(tmp_path):
    """Two jobs started together would overwrite one another."""
    with pytest.raises(FileExistsError, match="appeared while"), _zarr.building(tmp_path / "s"):
        make_empty(tmp_path / "s")
    assert FeatureStore.open(tmp_path / "s").n_images == N_IMAGES


def test_open_refuses_what_is_no_store(tmp_path):
    """Any Zarr group or folder would be read as a store."""
    with pytest.raises(FileNotFoundError, match="there is no store at"):
        FeatureStore.open(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file"):
        with pytest.raises(ValueError, match="is no store: it holds no Zarr v3 group"):
            FeatureStore.open(tmp_path / name)
    group = zarr.create_group(tmp_path / "group", attributes={"format": "other"})
    with pytest.raises(ValueError, match="its attribute 'format' is 'other'"):
        FeatureStore.open(tmp_path / "group")
    group.attrs.update({"format": "pairstack-store", "version": 2})
    with pytest.raises(ValueError, match=r"has store version 2.*Upgrade"):
        FeatureStore.open(tmp_path / "group")
    with pytest.raises(ValueError, match="mode must be 'r' or 'r\\+'; got 'w'"):
        FeatureStore.open(tmp_path / "group", "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": ["a", "a"]}, "image ids must be unique"),
        ({"image_ids": ["a", ""]}, "image id may not be empty"),
        ({"classes": ["a", "a"]}, "class names must be unique"),
        ({"chunk_images": 0}, "chunk_images must be a positive integer; got 0"),
        ({"attrs": {"format": "x"}}, r"attributes \['format'\] belong to the store format"),
        ({"split_group": ["a"]}, "split_group must have shape"),
        ({"labels": np.zeros((3, 2))}, r"Y must have shape"),
        ({"metadata": pd.DataFrame({"x": [1, 2]}, index=["a", "c"])}, "metadata: 1 of 2 expected"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_create_refuses_what_does_not_fit(change, message, tmp_path):
    """A store with ambiguous names could not be aligned to anything."""
    arguments = {"image_ids": ["a", "b"], "classes": ["x", "y"]} | change
    with pytest.raises(ValueError, match=message):
        FeatureStore.create(tmp_path / "s", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_reading_modes_cannot_write(store):
    """A reader, or a view of some images, would change the store."""
    values = np.zeros((N_IMAGES, N_CLASSES))
    with pytest.raises(ValueError, match=r"open for reading; use FeatureStore.open\(path, 'r\+'\)"):
        FeatureStore.open(store.path).add_probabilities("m", values)
    with pytest.raises(ValueError, match="a subset cannot be written to"):
        store.subset(IDS[:3]).add_probabilities("m", values[:3])


def test_unknown_names_get_a_hint(store):
    """A typing error would end in a KeyError from deep inside."""
    with pytest.raises(ValueError, match=r"no model 'se10' .* Did you mean 'se101'\?"):
        store.probabilities("se10")
    with pytest.raises(ValueError, match="no embeddings 'x'"):
        store.embeddings("x")
    with pytest.raises(ValueError, match="no ImageNet logits 'x'"):
        store.imagenet_logits("x")
    with pytest.raises(ValueError, match=r"no fold probabilities of 'x' .* it has none"):
        store.fold_probabilities("x")
    with pytest.raises(ValueError, match="there is no array 'nothing'"):
        store.array_attrs("nothing")
    with pytest.raises(ValueError, match="no model 'x'"):
        store.to_stack(["x"])


def test_a_model_is_not_overwritten_unasked(store):
    """Days of predictions would be gone."""
    zeros = np.zeros((N_IMAGES, N_CLASSES))
    with pytest.raises(ValueError, match=r"'se101' is already in .* overwrite=True"):
        store.add_probabilities("se101", zeros)
    store.add_probabilities("se101", sparse.csr_array(zeros), overwrite=True)
    assert store.probability_array("se101").nnz == 0
    assert store.models == ["hub/lite0.linear", "se101"]
    with pytest.raises(ValueError, match="embeddings 'hub/lite0' is already in"):
        store.add_embeddings("hub/lite0", zeros)


def test_user_attributes_are_kept(store):
    """Settings of a run could not be compared on resuming."""
    store.update_attrs({"run": {"heads": ["linear"]}})
    assert FeatureStore.open(store.path).attrs["run"] == {"heads": ["linear"]}
    assert FeatureStore.open(store.path).attrs["source"] == "test"
    with pytest.raises(ValueError, match="belong to the store format"):
        store.update_attrs({"version": 9})


@pytest.mark.parametrize(
    "take", [[4, 1, 20], list(range(22, -1, -1)), [7]], ids=["some", "all", "one"]
)
def test_a_subset_reads_what_the_store_reads_at_these_rows(take, store):
    """A view would mix rows of different images."""
    view = store.subset(IDS[take])
    assert isinstance(view, FeatureStore)
    assert view.image_ids.tolist() == IDS[take].tolist()
    for name in ("fold", "split_group", "labels_known", "errors", "skipped"):
        np.testing.assert_array_equal(getattr(view, name), getattr(store, name)[take])
    np.testing.assert_array_equal(view.labels.toarray(), store.labels.toarray()[take])
    pd.testing.assert_frame_equal(view.image_stats, store.image_stats.iloc[take])
    pd.testing.assert_frame_equal(view.metadata, store.metadata.iloc[take])
    whole, part = store.to_stack(), view.to_stack()
    for model in store.models:
        np.testing.assert_array_equal(part.probabilities[model], whole.probabilities[model][take])
    np.testing.assert_array_equal(part.embeddings["hub/lite0"], whole.embeddings["hub/lite0"][take])
    again = view.subset(view.image_ids[:1])
    assert again.image_ids.tolist() == [IDS[take[0]]]


def test_a_subset_by_mask_and_by_unknown_ids(store):
    """A mask of another length or an unknown id would shift rows."""
    mask = np.arange(N_IMAGES) % 5 == 0
    assert store.subset(mask).image_ids.tolist() == IDS[mask].tolist()
    with pytest.raises(ValueError, match=r"mask has shape \(3,\); expected \(23,\)"):
        store.subset(mask[:3])
    with pytest.raises(ValueError, match=r"2 image ids are not in .* first: 'x', 'y'"):
        store.subset(["x", IDS[0], "y"])
    with pytest.raises(ValueError, match="image ids must be unique"):
        store.subset([IDS[0], IDS[0]])


def test_a_copied_subset_is_a_store_of_these_images(store, tmp_path):
    """A held-out part written to its own store would differ from the view."""
    store.add_topk("sparse", sparse.csr_array(store.probability_array("se101")))
    store.add_fold_probabilities("se101", np.zeros((2, N_IMAGES, N_CLASSES), dtype=np.float32))
    view = store.subset(IDS[[9, 3, 14, 2]])
    copy = store.subset(view.image_ids, tmp_path / "copy")
    assert copy.image_ids.tolist() == view.image_ids.tolist()
    assert copy.array_names == store.array_names
    assert copy.attrs == store.attrs
    for model in store.models:
        a, b = (s.probability_array(model) for s in (copy, view))
        np.testing.assert_array_equal(*(x.toarray() if sparse.issparse(x) else x for x in (a, b)))
    np.testing.assert_array_equal(copy.labels.toarray(), view.labels.toarray())
    np.testing.assert_array_equal(copy.fold_probabilities("se101"), 0)
    pd.testing.assert_frame_equal(copy.image_stats, view.image_stats)
    pd.testing.assert_frame_equal(copy.metadata, view.metadata)
    assert copy.label_space == store.label_space


@pytest.mark.parametrize("held", ["probabilities", "image_stats"])
def test_a_store_of_one_kind_is_copied(arrays, tmp_path, held):
    """Names of statistics would be looked for, or lost, where nothing else is there."""
    wanted = {k: arrays[k] for k in ("image_ids", "classes", held)}
    wanted.setdefault("probabilities", {})
    store = FeatureStore.from_arrays(tmp_path / "store", **wanted)
    copy = store.copy(tmp_path / "copy")
    assert copy.array_names == store.array_names
    if held == "image_stats":
        pd.testing.assert_frame_equal(copy.image_stats, store.image_stats)


def test_a_chunk_holds_1024_images_unless_told(tmp_path):
    """Stores of one pipeline could not be resumed by another version."""
    given = {"image_ids": IDS, "classes": CLASSES}
    assert FeatureStore.create(tmp_path / "a", **given).chunk_images == 1024
    assert FeatureStore.from_arrays(tmp_path / "b", **given, probabilities={}).chunk_images == 1024


def test_a_store_without_skipped_images_is_its_own_view(store):
    """Reading would pay for a selection that selects everything."""
    assert store.without_skipped() is store


def test_a_store_may_live_behind_any_fsspec_url(arrays):
    """Stores in object storage could not be used."""
    pytest.importorskip("fsspec")
    url = f"memory://stores/{os.getpid()}-{time.time_ns()}"
    FeatureStore.from_arrays(url, **arrays)
    store = FeatureStore.open(url)
    np.testing.assert_array_equal(store.labels.toarray(), arrays["labels"])
    np.testing.assert_array_equal(
        store.to_stack().probabilities["se101"], arrays["probabilities"]["se101"]
    )
    with pytest.raises(FileExistsError, match="exists; choose another path"):
        FeatureStore.from_arrays(url, **arrays)
    with pytest.raises(FileNotFoundError, match="there is no store"):
        FeatureStore.open(url + "-missing")
