"""What may go into a store: alignment by name, checked values, top-k, folds, labels."""

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

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


def test_frames_and_named_arrays_are_realigned(empty, rng):
    """Shuffled rows or columns would be stored under other names."""
    values = rng.random((N_IMAGES, N_CLASSES)).astype(np.float32)
    rows, columns = rng.permutation(N_IMAGES), rng.permutation(N_CLASSES)
    shuffled = values[rows][:, columns]
    names = {"image_ids": IDS[rows], "classes": CLASSES[columns]}
    empty.add_probabilities("plain", values)
    empty.add_probabilities("named", shuffled, **names)
    empty.add_probabilities("frame", pd.DataFrame(shuffled, IDS[rows], CLASSES[columns]))
    empty.add_topk("sparse", sparse.csr_array(shuffled), **names)
    empty.add_embeddings("e", shuffled.astype("float16"), image_ids=IDS[rows])
    empty.add_fold_probabilities("folds", [shuffled, shuffled], **names)
    for model in ("named", "frame"):
        np.testing.assert_array_equal(empty.probability_array(model), values)
    np.testing.assert_array_equal(empty.probability_array("sparse").toarray(), values)
    np.testing.assert_array_equal(empty.embeddings("e"), values[:, columns].astype(np.float16))
    np.testing.assert_array_equal(empty.fold_probabilities("folds"), [values, values])
    fold = pd.Series(rows, index=IDS[rows])
    empty.set_fold(fold)
    np.testing.assert_array_equal(empty.fold, np.arange(N_IMAGES))
    labels = (shuffled > 0.5).astype(int)
    empty.set_labels(pd.DataFrame(labels, IDS[rows], CLASSES[columns]), image_ids=IDS)
    np.testing.assert_array_equal(empty.labels.toarray(), values > 0.5)


FRAME = pd.DataFrame(np.full((N_IMAGES, N_CLASSES), 0.5), IDS, CLASSES)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.iloc[2:], "'m': 2 of 23 expected image ids are missing, first: 'folder/img 0'"),
        (FRAME.iloc[:, 1:], "'m': 1 of 5 expected class names are missing, first: 'tag::cat'"),
        (FRAME.rename(columns={"other": "zebra"}), "class names are missing, first: 'other'"),
        (FRAME.assign(zebra=0.5), "'m': 1 unknown class names, first: 'zebra'"),
        (pd.concat([FRAME, FRAME.iloc[:1]]), "image ids must be unique; 1 occur more than once"),
        (pd.concat([FRAME, FRAME.iloc[:1].rename(index=lambda _: "new")]), "unknown image ids"),
        (FRAME.to_numpy()[2:], "21 images given, the store has 23"),
        (FRAME.to_numpy()[:, 2:], "3 classes given, the store has 5"),
        (np.zeros(N_IMAGES), "must have shape"),
        (FRAME.reset_index(drop=True), "23 of 23 expected image ids are missing"),
    ],
)
def test_misaligned_predictions_are_refused_by_name(frame, message, empty):
    """Predictions of other images would be stored, and nobody would see it."""
    with pytest.raises(ValueError, match=message):
        empty.add_probabilities("m", frame)
    assert empty.models == []


def add(store, values, form):
    """Add probabilities of model "m" in one of the ways there are."""
    if form == "array":
        store.add_probabilities("m", values)
    elif form == "topk":
        store.add_topk("m", sparse.csr_array(values))
    elif form == "folds":
        store.add_fold_probabilities("m", [values])
    else:
        store.require_array("probabilities/m", (N_CLASSES,), "float32", ("image", "class"))
        store.write_rows("probabilities/m", 16, values[16:])


@pytest.mark.parametrize(
    ("value", "message"),
    [(3.2, "Apply a sigmoid"), (-0.1, "Apply a sigmoid"), (np.nan, "must be finite")],
)
@pytest.mark.parametrize("form", ["array", "topk", "folds", "rows"])
def test_values_are_checked_on_the_way_in(form, value, message, empty):
    """Logits would be stored as probabilities."""
    values = np.full((N_IMAGES, N_CLASSES), 0.5, dtype=np.float32)
    values[20, 3] = value
    with pytest.raises(ValueError, match=message) as error:
        add(empty, values, form)
    assert "model 'm', image 'folder/img 20', class 'culture::éire'" in str(error.value)


def test_embeddings_must_be_finite_and_fit_half_precision(empty):
    """Infinity would make every neighbour distance NaN."""
    values = np.ones((N_IMAGES, 2))
    values[3] = 1e6
    with pytest.raises(ValueError, match=r"embeddings of 'e' must be finite; image 'folder/img 3'"):
        empty.add_embeddings("e", values)
    with pytest.raises(ValueError, match=r"must have shape \(n_images, dim\)"):
        empty.add_embeddings("f", np.ones(N_IMAGES))


def test_topk_round_trip_keeps_values_and_order(empty, rng):
    """Sparse predictions of tens of thousands of classes would change."""
    dense = rng.random((N_IMAGES, N_CLASSES)) * (rng.random((N_IMAGES, N_CLASSES)) < 0.5)
    matrix = sparse.csr_array(dense.astype(np.float32))
    empty.add_probabilities("m", matrix, attrs={"k": 3})
    assert empty.models == ["m"]
    back = empty.probability_array("m")
    assert (back != matrix).nnz == 0
    assert back.shape == matrix.shape
    root = zarr.open_group(empty.path, mode="r")
    index, value = root["topk/m/index"][...], root["topk/m/value"][...]
    assert index.shape[1] == np.diff(matrix.indptr).max()
    assert (np.diff(value, axis=1) <= 0).all()
    np.testing.assert_array_equal(index < 0, value == 0)
    np.testing.assert_array_equal(empty.probabilities("m").to_numpy(), matrix.toarray())
    assert empty.to_stack().is_sparse
    view = empty.subset(IDS[[9, 2]])
    np.testing.assert_array_equal(view.probability_array("m").toarray(), dense[[9, 2]].astype("f"))


@pytest.mark.parametrize("index", [[[0, 0]], [[5, 1]], [[-2, 1]]])
def test_topk_rows_must_name_each_class_once(index, empty):
    """A class listed twice would count twice."""
    empty.require_array("topk/m/index", (2,), "int32", ("image", "rank"))
    rows = np.repeat(np.array(index), CHUNK, axis=0)
    with pytest.raises(ValueError, match=r"0\.\.4, each once an image, or -1; 8 images do not"):
        empty.write_rows("topk/m/index", 0, rows)


def test_fold_probabilities_may_leave_out_images(empty, rng):
    """Labelled images have no prediction of each fold model."""
    values = rng.random((3, N_IMAGES, N_CLASSES)).astype(np.float16)
    values[0, :5] = np.nan
    empty.add_fold_probabilities("m", values, attrs={"folds": 3})
    np.testing.assert_array_equal(empty.fold_probabilities("m"), values)
    assert empty.array_attrs("fold_probabilities/m") == {"folds": 3}
    view = empty.subset(IDS[[7, 1]])
    np.testing.assert_array_equal(view.fold_probabilities("m"), values[:, [7, 1]])
    values[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        empty.add_fold_probabilities("n", values)


def test_labels_of_unknown_images_are_refused(empty):
    """Labels that are there but called unknown would be used by one reader and not another."""
    labels = np.zeros((N_IMAGES, N_CLASSES), dtype=int)
    known = np.ones(N_IMAGES, dtype=bool)
    known[4] = False
    empty.set_labels(labels, known)
    np.testing.assert_array_equal(empty.labels_known, known)
    labels[4, 0] = 1
    with pytest.raises(ValueError, match="labels_known is False, first: 'folder/img 4'"):
        empty.set_labels(labels, known)
    with pytest.raises(ValueError, match="labels_known must have shape"):
        empty.set_labels(labels, known[:3])


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (np.zeros(3, dtype=int), r"fold must have shape \(n_images,\) = \(23,\); got \(3,\)"),
        (np.full(N_IMAGES, -2), "at least -1; got dtype int64, least -2"),
        (np.zeros(N_IMAGES), "fold must hold integers"),
        (np.full(N_IMAGES, 40_000), "below 32,768; got 40000"),
    ],
)
def test_folds_that_are_none_are_refused(fold, message, empty):
    """Folds would wrap around or be cut."""
    with pytest.raises(ValueError, match=message):
        empty.set_fold(fold)


def test_empty_split_groups_are_refused(empty):
    """All images with a blank cell would become one group."""
    groups = np.array(["g"] * (N_IMAGES - 2) + ["", ""])
    with pytest.raises(ValueError, match=r"2 images have an empty split group, first: 'folder/img"):
        empty.set_split_group(groups)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_stores_without_images_or_classes_work(shape, tmp_path):
    """An empty part of a data set would crash a pipeline."""
    store = FeatureStore.from_arrays(
        tmp_path / "s",
        image_ids=[f"i{i}" for i in range(shape[0])],
        classes=[f"c{c}" for c in range(shape[1])],
        probabilities={"m": np.zeros(shape), "k": sparse.csr_array(shape)},
        labels=np.zeros(shape),
    )
    assert store.to_stack(["m"]).shape == (shape[0], 1, shape[1])
    assert store.probability_array("k").shape == store.labels.shape == shape


def test_topk_rows_of_an_unfinished_model_are_empty(empty):
    """Positions without values, or values without positions, would be read as predictions."""
    for leaf, dtype in (("index", "int32"), ("value", "float32")):
        empty.require_array(f"topk/m/{leaf}", (2,), dtype, ("image", "rank"))
    empty.write_rows("topk/m/index", 0, np.tile([0, 3], (8, 1)))
    empty.write_rows("topk/m/value", 8, np.full((8, 2), 0.5))
    assert empty.probability_array("m").nnz == 0
    empty.write_rows("topk/m/value", 0, np.full((8, 2), 0.5))
    assert empty.probability_array("m").nnz == 16


def test_equal_topk_values_stand_in_class_order(tmp_path):
    """Two writers of the same predictions would give different bytes."""
    classes = [f"c{c}" for c in range(200)]
    store = FeatureStore.create(tmp_path / "s", image_ids=["i"], classes=classes)
    store.add_topk("m", sparse.csr_array(np.tile([0.25, 0.75], 100)[None]))
    index = zarr.open_group(store.path, mode="r")["topk/m/index"][0]
    assert index.tolist() == [*range(1, 200, 2), *range(0, 200, 2)]
