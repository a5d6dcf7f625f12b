"""Predictions in files to a store: every kind of file, every mismatch by name."""

import numpy as np
import pandas as pd
import pytest

from features._order_checks import exchanged_columns
from features.folds import make_folds
from features.importing import find_files, import_predictions, read_predictions

CLASSES = ["bee", "cat", "dog", "owl", "pig", "yak"]


@pytest.fixture
def case(tmp_path, rng):
    """60 labelled and 20 test images of 6 classes, two models, and the labels' CSV."""
    Y = (rng.random((60, 6)) < 0.4).astype(np.int8)
    Y[0] = 1
    models = {m: (0.6 * Y + 0.4 * rng.random(Y.shape)).astype(np.float32) for m in ("a", "b")}
    test = {m: rng.random((20, 6)).astype(np.float32) for m in models}
    ids = np.array([f"im{i}" for i in range(60)])
    names = [" ".join(np.array(CLASSES)[row > 0]) for row in Y]
    pd.DataFrame({"id": ids, "attribute_ids": names}).to_csv(tmp_path / "labels.csv", index=False)
    return {"Y": Y, "oof": models, "test": test, "ids": ids, "folder": tmp_path}


def write(kind, values, ids, folder):
    """Write two models' predictions as one kind of file; what `import_predictions` is given."""
    if kind in ("npz", "h5"):
        path = folder / f"all.{kind}"
        if kind == "npz":
            np.savez(path, **values, image_id=ids, classes=np.array(CLASSES))
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                for name, array in values.items():
                    file[f"oof/{name}"] = array
                file["image_id"] = ids.astype(object)
                file["classes"] = np.array(CLASSES).astype(object)
        return {"all": path}
    paths = {name: folder / f"{name}_oof.{kind}" for name in values}
    for name, array in values.items():
        frame = pd.DataFrame(array, pd.Index(ids, name="image_id"), CLASSES)
        if kind == "npy":
            np.save(paths[name], array)
        elif kind == "csv":
            frame.to_csv(paths[name])
        else:
            frame.to_parquet(paths[name])
    return paths


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_store(case, kind):
    """A reader transposes, reorders or rounds."""
    files = write(kind, case["oof"], case["ids"], case["folder"])
    store = import_predictions(case["folder"] / "s", files, case["folder"] / "labels.csv")
    assert store.classes.tolist() == CLASSES
    assert store.image_ids.tolist() == case["ids"].tolist()
    np.testing.assert_array_equal(store.labels.toarray(), case["Y"])
    for model, values in case["oof"].items():
        np.testing.assert_allclose(store.probability_array(model), values, rtol=1e-6)


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_named_rows_and_columns_in_any_order_are_realigned(case, kind):
    """A file sorted otherwise than the labels."""
    order = np.random.default_rng(1).permutation(60)
    shuffled = {m: v[order] for m, v in case["oof"].items()}
    files = write(kind, shuffled, case["ids"][order], case["folder"])
    store = import_predictions(case["folder"] / "s", files, case["folder"] / "labels.csv")
    for model, values in case["oof"].items():
        got = store.probabilities(model).loc[case["ids"], CLASSES]
        np.testing.assert_allclose(got, values, rtol=1e-6)


def test_test_images_stand_after_the_labelled_ones_without_labels(case):
    """Test predictions get the labels of nobody, and their own ids."""
    (case["folder"] / "ids.txt").write_text("\n".join(f"t{i}" for i in range(20)) + "\n")
    store = import_predictions(
        case["folder"] / "s",
        case["oof"],
        case["folder"] / "labels.csv",
        test=case["test"],
        test_ids=case["folder"] / "ids.txt",
    )
    assert store.labels_known.tolist() == [True] * 60 + [False] * 20
    assert store.image_ids[60:].tolist() == [f"t{i}" for i in range(20)]
    np.testing.assert_allclose(store.probability_array("a")[60:], case["test"]["a"])


def test_wide_labels_and_numbered_labels_name_the_classes(case):
    """A 0/1 table brings its columns; numbers are positions, not strings sorted as text."""
    table = pd.DataFrame(case["Y"], pd.Index(case["ids"], name="image_id"), CLASSES[::-1])
    table.to_csv(case["folder"] / "wide.csv")
    store = import_predictions(case["folder"] / "w", case["oof"], case["folder"] / "wide.csv")
    assert store.classes.tolist() == CLASSES[::-1]
    wide = np.zeros((60, 12), dtype=np.float32)
    wide[:, ::2] = case["oof"]["a"]
    numbers = [" ".join(map(str, 2 * np.flatnonzero(row))) for row in case["Y"]]
    frame = pd.DataFrame({"id": case["ids"], "attribute_ids": numbers})
    frame.to_csv(case["folder"] / "numbers.csv", index=False)
    store = import_predictions(case["folder"] / "n", {"a": wide}, case["folder"] / "numbers.csv")
    assert store.classes.tolist() == [str(c) for c in range(12)]
    np.testing.assert_array_equal(store.labels.toarray()[:, ::2], case["Y"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v[:50], "shapes: model 'b' has 50 rows, but there are 60 image ids"),
        (lambda v: v[:, :5], r"shapes: model 'b' has shape \(60, 5\)"),
        (lambda v: np.log(v / (1 - v)), "range: model 'b' has values from -.*sigmoid"),
        (lambda v: v * 100, "divide percentages by 100"),
        (lambda v: np.log(v), "exponentiate log-probabilities"),
        (
            lambda v: np.where(np.arange(v.size).reshape(v.shape) == 13, np.nan, v),
            "model 'b' has NaN or infinity, first: image 'im2', class 'cat'",
        ),
        (lambda v: v.T, r"shapes: model 'b' has shape \(6, 60\).* transposed"),
        (
            lambda v: pd.DataFrame(v.T, CLASSES, [f"im{i}" for i in range(60)]),
            "shapes: model 'b'.* transposed",
        ),
        (lambda v: v * (1 + 1e-6) / v.max(), r"to 1\.00000\d+, just outside.*clip"),
        (lambda v: v - v.min() - 1e-6, r"from -\d.*e-07 to .* just outside.*clip"),
        (
            lambda v: v[:, [0, 4, 2, 3, 1, 5]],
            r"order: columns of model 'b' fit.* own: 'cat' with 'pig' \(1",
        ),
        (lambda v: v[::-1].copy(), "order: model 'b' gives true labels a higher probability"),
        (
            lambda v: np.roll(v, 1, axis=1),
            r"model 'b'.* Give ids and classes \(or check_ord",
        ),
    ],
)
def test_a_mismatch_is_named(case, change, match):
    """Rows, columns, range or order of one model do not fit: which, and what to do."""
    with np.errstate(all="ignore"):
        given = {"a": case["oof"]["a"], "b": change(np.clip(case["oof"]["b"], 0.01, 0.99))}
    with pytest.raises(ValueError, match=match):
        import_predictions(case["folder"] / "s", given, case["folder"] / "labels.csv")
    assert not (case["folder"] / "s").exists()


def test_names_that_do_not_fit_are_told(case):
    """Models of train and test differ, labels are no classes, an id is missing or in both."""
    labels = case["folder"] / "labels.csv"
    out = case["folder"] / "s"
    with pytest.raises(ValueError, match=r"models: .* \['a', 'b'\].* \['a'\]"):
        import_predictions(out, case["oof"], labels, test={"a": case["test"]["a"]})
    with pytest.raises(ValueError, match=r"classes: .*'bee'"):
        import_predictions(out, case["oof"], labels, classes=["x", *CLASSES[1:]])
    with pytest.raises(ValueError, match=r"classes: 5 names for the 6 columns of model 'a'"):
        import_predictions(out, case["oof"], labels, classes=CLASSES[1:])
    frame = pd.DataFrame(case["oof"]["a"], case["ids"], CLASSES)
    more = pd.concat([frame, frame.iloc[:1].rename(index={"im0": "new"})])
    with pytest.raises(ValueError, match=r"ids: .*1 of 61 expected image ids are missing"):
        import_predictions(out, {"a": more}, labels)
    with pytest.raises(ValueError, match="ids: 20 images are among"):
        import_predictions(
            out, case["oof"], labels, test=case["test"], test_ids=case["ids"][:20].tolist()
        )


def test_ids_and_labels_that_nearly_agree_come_with_what_is_missing(case):
    """Ids with a file ending and labels joined by commas were only listed."""
    out, path = case["folder"] / "s", case["folder"] / "labels.csv"
    frame = pd.DataFrame(case["oof"]["a"], case["ids"], CLASSES)
    with pytest.raises(ValueError, match="Without folders and file endings they agree"):
        import_predictions(out, {"a": frame.rename(index=lambda i: f"train/{i}.png")}, path)
    with pytest.raises(ValueError, match=r"are missing.*more\.$"):
        import_predictions(out, {"a": frame.rename(index=lambda i: f"x{i}")}, path)
    labels = pd.read_csv(path)
    labels["attribute_ids"] = labels["attribute_ids"].str.replace(" ", ",")
    labels.to_csv(path, index=False)
    with pytest.raises(ValueError, match="replace ',' by a space"):
        import_predictions(out, {"a": frame}, path)


def test_transposed_predictions_are_turned_when_agreed_to(case):
    """The question names the mismatch; the answer yes repairs labelled and test images."""
    path = case["folder"] / "s"
    store = import_predictions(
        path,
        {m: v.T for m, v in case["oof"].items()},
        case["folder"] / "labels.csv",
        test={m: v.T for m, v in case["test"].items()},
        test_ids=[f"new{i}" for i in range(20)],
        ask=lambda question: "transposed?" in question,
    )
    for model, values in case["oof"].items():
        both = np.concatenate([values, case["test"][model]])
        np.testing.assert_array_equal(store.probability_array(model), both)


def test_columns_of_labels_that_come_together_are_not_taken_for_exchanged():
    """A class that never comes without another is predicted by that one's column, too."""
    rng = np.random.default_rng(0)
    Y = (rng.random((400, 8)) < 0.3).astype(np.int8)
    Y[:, 1] = Y[:, 0] & (rng.random(400) < 0.3)
    values = (0.5 * Y + 0.5 * rng.random(Y.shape)).astype(np.float32)
    values[:, 1] = rng.random(400)  # its own column knows nothing
    assert exchanged_columns(values, Y) == []
    assert exchanged_columns(values[:, [0, 1, 2, 7, 4, 6, 5, 3]], Y) == [(3, 7), (5, 6)]


def test_a_repair_is_made_when_asked_for_or_agreed_to(case):
    """The question names the mismatch; the answer yes repairs it."""
    logits = {m: np.log(v / (1 - v)) for m, v in case["oof"].items()}
    asked = []
    store = import_predictions(
        case["folder"] / "s",
        logits,
        case["folder"] / "labels.csv",
        ask=lambda question: asked.append(question) or True,
    )
    assert len(asked) == 2
    assert "range: model 'a'" in asked[0]
    np.testing.assert_allclose(store.probability_array("a"), case["oof"]["a"], atol=1e-6)
    turned = {"a": case["oof"]["a"][::-1].copy()}
    path = case["folder"] / "t"
    import_predictions(path, turned, case["folder"] / "labels.csv", check_order=False)
    assert path.exists()


def test_metadata_brings_split_groups(case):
    """Groups and other columns of a CSV, in any order of rows."""
    frame = pd.DataFrame({"image_id": case["ids"], "split_group": np.arange(60) // 2, "year": 7})
    frame[::-1].to_csv(case["folder"] / "meta.csv", index=False)
    store = import_predictions(
        case["folder"] / "s",
        case["oof"],
        case["folder"] / "labels.csv",
        metadata=case["folder"] / "meta.csv",
    )
    assert store.split_group.tolist() == [str(i // 2) for i in range(60)]
    assert store.metadata["year"].eq(7).all()


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_tables_with_other_separators_say_so(case, separator, name):
    """They ended in "zero-size array to reduction operation minimum"."""
    frame = pd.DataFrame(case["oof"]["a"], pd.Index(case["ids"], name="image_id"), CLASSES)
    frame.to_csv(case["folder"] / "a.csv", sep=separator)
    labels = case["folder"] / "labels.csv"
    with pytest.raises(ValueError, match=f"a.csv: there is no class column.* separated by {name}"):
        import_predictions(case["folder"] / "s", {"a": case["folder"] / "a.csv"}, labels)
    labels.write_text(labels.read_text(encoding="utf-8").replace(",", separator), encoding="utf-8")
    with pytest.raises(ValueError, match=f"labels.csv must have .* separated by {name}"):
        import_predictions(case["folder"] / "s", {"a": frame}, labels)


def test_folds_are_made_unless_they_are_brought(case):
    """`stacker compare` and `build-features` refused every store that was imported."""
    ids = case["ids"]
    groups = pd.DataFrame(
        {"image_id": [*ids, "n0", "n1"], "split_group": [*(np.arange(60) // 4), 0, 1]}
    )
    groups.to_csv(case["folder"] / "meta.csv", index=False)
    test = {m: v[:2] for m, v in case["test"].items()}
    store = import_predictions(
        case["folder"] / "s",
        case["oof"],
        case["folder"] / "labels.csv",
        test=test,
        test_ids=["n0", "n1"],
        metadata=case["folder"] / "meta.csv",
    )
    # Those that PairStacker(cv=5) makes of the same images: fitting gives what it gave.
    np.testing.assert_array_equal(store.fold[:60], make_folds(case["Y"], 5, np.arange(60) // 4))
    assert store.fold[60:].tolist() == [-1, -1]
    groups.assign(fold=[*(np.arange(60) % 3), -1, -1]).to_csv(
        case["folder"] / "own.csv", index=False
    )
    store = import_predictions(
        case["folder"] / "t",
        case["oof"],
        case["folder"] / "labels.csv",
        test=test,
        test_ids=["n0", "n1"],
        metadata=case["folder"] / "own.csv",
    )
    assert store.fold[:60].tolist() == (np.arange(60) % 3).tolist()


def test_files_are_told_apart_and_named_by_their_names(tmp_path):
    """Folders and patterns; "test" in a name; two files of one name are refused."""
    for name in ("a_oof.npy", "a_test.npy", "latest_oof.npy", "latest_test.npy", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    oof, test = find_files([str(tmp_path)])
    assert sorted(oof) == sorted(test) == ["a", "latest"]
    assert find_files([f"{tmp_path}/*_oof.npy"], [f"{tmp_path}/*_test.npy"]) == (oof, test)
    with pytest.raises(ValueError, match="would be one model, 'a': give NAME=FILE"):
        find_files([f"{tmp_path}/a_oof.npy", "other/a.npy"])


def test_one_array_of_a_file_is_taken_by_its_key(tmp_path):
    """``FILE:KEY``; an unknown key lists those there; objects are refused."""
    np.savez(tmp_path / "x.npz", one=np.zeros((2, 3)), two=np.ones((2, 3)), k=np.arange(4))
    found = read_predictions(f"{tmp_path}/x.npz:two")
    assert {name: values.sum() for name, values in found.items()} == {"two": 6}
    assert sorted(read_predictions(tmp_path / "x.npz")) == ["one", "two"]
    with pytest.raises(ValueError, match="no array 'three'; it has"):
        read_predictions(f"{tmp_path}/x.npz:three")
    np.save(tmp_path / "o.npy", np.array([["a", None]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        read_predictions(tmp_path / "o.npy")
    with pytest.raises(ValueError, match="are read from"):
        read_predictions(__file__)


def save_arrays(path, arrays):
    """Arrays by key into an npz or HDF5 file."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            text = values.dtype.kind == "U"
            file[key] = values.astype(object) if text else values
    return path


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_names_of_rows_or_columns_alone_are_heeded(case, kind, rng):
    """A file that names its images but not its classes was read by position, unasked."""
    rows, columns = rng.permutation(60), rng.permutation(6)
    ids, names, values = case["ids"], np.array(CLASSES), case["oof"]["a"]
    for part in (
        {"p": values[rows], "image_id": ids[rows]},
        {"p": values[:, columns], "class": names[columns]},
    ):
        path = save_arrays(case["folder"] / f"{len(part['p'])}-{sorted(part)[0]}.{kind}", part)
        out = case["folder"] / f"store-{sorted(part)[0]}-{kind}"
        store = import_predictions(out, {"a": path}, case["folder"] / "labels.csv")
        found = store.probabilities("a").loc[ids, CLASSES]
        np.testing.assert_array_equal(found.to_numpy(), values)


def test_names_that_are_not_as_many_as_the_rows_are_refused(case):
    """They were left aside without a word, and the rows taken for those of the labels."""
    part = {"p": case["oof"]["a"], "image_id": case["ids"][:59]}
    path = save_arrays(case["folder"] / "all.npz", part)
    with pytest.raises(ValueError, match=r"'p' has 60 rows, but the file names 59 in 'image_id'"):
        read_predictions(path)
    # One array asked for by its key: the names may be those of another.
    assert read_predictions(f"{path}:p")["p"].shape == (60, 6)


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_arrays_of_one_name_in_several_groups_are_several_models(case, kind):
    """Of "a/oof" and "b/oof" the second took the place of the first, without a word."""
    arrays = {f"{name}/oof": values for name, values in case["oof"].items()}
    read = read_predictions(save_arrays(case["folder"] / f"all.{kind}", arrays))
    assert sorted(read) == ["a", "b"]
    np.testing.assert_array_equal(read["a"], case["oof"]["a"])
    arrays |= {f"{name}/test": values for name, values in case["test"].items()}
    read = read_predictions(save_arrays(case["folder"] / f"more.{kind}", arrays))
    assert sorted(read) == sorted(arrays)


def test_files_that_hold_the_same_models_are_refused(case):
    """The models of the second file took the place of those of the first."""
    paths = [save_arrays(case["folder"] / f"{n}.npz", case["oof"]) for n in ("one", "two")]
    with pytest.raises(ValueError, match=r"both hold \['a', 'b'\]. Take their arrays one by one"):
        import_predictions(
            case["folder"] / "s", {p.stem: p for p in paths}, case["folder"] / "labels.csv"
        )


@pytest.mark.parametrize("name", [None, "Image"])
def test_ids_in_an_index_of_any_name_are_found_in_parquet(case, name, rng):
    """`frame.to_parquet(path)` of an index without a name: the first class was taken for ids."""
    frame = pd.DataFrame(case["oof"]["a"], pd.Index(case["ids"], name=name), CLASSES)
    frame.iloc[rng.permutation(60)].to_parquet(case["folder"] / "a.parquet")
    store = import_predictions(
        case["folder"] / "s", {"a": case["folder"] / "a.parquet"}, case["folder"] / "labels.csv"
    )
    found = store.probabilities("a").loc[case["ids"], CLASSES]
    np.testing.assert_array_equal(found.to_numpy(), case["oof"]["a"])


@pytest.mark.parametrize("cell", [2, None, "x" * 10_000])
def test_a_column_of_labels_that_is_no_class_is_named(case, cell):
    """The message spoke of "Y", without the file, the column and the image."""
    table = pd.DataFrame(case["Y"].astype(object), pd.Index(case["ids"], name="id"), CLASSES)
    table.loc["im3", "dog"] = cell
    table.to_csv(case["folder"] / "wide.csv")
    match = r"wide.csv: column 'dog' must hold 0 and 1; image 'im3' has .* --label-column"
    with pytest.raises(ValueError, match=match) as found:
        import_predictions(case["folder"] / "s", case["oof"], case["folder"] / "wide.csv")
    assert len(str(found.value)) < 500


def test_a_table_without_a_first_line_of_names_says_so(case):
    """Two equal values in the first line were called columns that stand twice, and no more."""
    values = case["oof"]["a"].copy()
    values[0, 1] = values[0, 0]
    np.savetxt(case["folder"] / "a.csv", values, delimiter=",")
    with pytest.raises(ValueError, match=r"stand twice.*first line must name the columns"):
        import_predictions(
            case["folder"] / "s", {"a": case["folder"] / "a.csv"}, case["folder"] / "labels.csv"
        )


def test_metadata_of_the_labelled_images_alone_says_what_is_missing(case):
    """Test images need a line too: nothing said so."""
    frame = pd.DataFrame({"image_id": case["ids"], "split_group": case["ids"]})
    frame.to_csv(case["folder"] / "meta.csv", index=False)
    with pytest.raises(ValueError, match="a line for every image, test images too"):
        import_predictions(
            case["folder"] / "s",
            case["oof"],
            case["folder"] / "labels.csv",
            test=case["test"],
            metadata=case["folder"] / "meta.csv",
        )
