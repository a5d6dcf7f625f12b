"""Embeddings, logits and statistics that come in files beside the predictions."""

import numpy as np
import pandas as pd
import pytest

from features.importing import find_context_files, import_predictions

CLASSES = ["bee", "cat", "dog", "owl", "pig", "yak"]


@pytest.fixture
def case(tmp_path, rng):
    """40 labelled and 10 test images: predictions, a vector of 5 and three statistics of each."""
    Y = (rng.random((40, 6)) < 0.4).astype(np.int8)
    Y[0] = 1
    ids = np.array([f"im{i}" for i in range(50)])
    names = [" ".join(np.array(CLASSES)[row > 0]) for row in Y]
    pd.DataFrame({"id": ids[:40], "labels": names}).to_csv(tmp_path / "labels.csv", index=False)
    return {
        "folder": tmp_path,
        "ids": ids,
        "given": {
            "out_of_fold": {"a": 0.6 * Y + 0.4 * rng.random(Y.shape)},
            "labels": tmp_path / "labels.csv",
            "test": {"a": rng.random((10, 6))},
            "test_ids": ids[40:],
        },
        "vectors": rng.normal(size=(50, 5)).astype(np.float16).astype(np.float32),
        "stats": pd.DataFrame(rng.random((50, 3)), pd.Index(ids, name="image_id"), list("xyz")),
    }


def as_files(case, kind):
    """The vectors in one file or two, with ids (then in another order) or without."""
    vectors, ids, folder = case["vectors"], case["ids"], case["folder"]
    if kind == "one array":
        return vectors
    if kind == "two npy":
        files = [folder / "e_train.npy", folder / "e_test.npy"]
        np.save(files[0], vectors[:40])
        np.save(files[1], vectors[40:])
        return files
    order = np.random.default_rng(1).permutation(50)
    mixed = pd.DataFrame(vectors[order], pd.Index(ids[order], name="image_id"))
    mixed.columns = mixed.columns.astype(str)
    if kind == "two csv":
        files = [folder / "e1.csv", folder / "e2.csv"]
        mixed[:17].to_csv(files[0])
        mixed[17:].to_csv(files[1])
        return files
    if kind == "parquet":
        mixed.to_parquet(folder / "e.parquet")
        return folder / "e.parquet"
    if kind == "npz beside predictions":
        # The names of the classes are those of the other array.
        path = folder / "all.npz"
        np.savez(path, e=vectors[order], p=np.zeros((50, 6)), image_id=ids[order], classes=CLASSES)
        return f"{path}:e"
    import polars

    return polars.from_pandas(mixed.reset_index())


KINDS = ["one array", "two npy", "two csv", "parquet", "npz beside predictions", "polars"]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_every_kind_of_file_meet_their_images(case, kind):
    """Rows were taken by position although the file names them; names of classes got in the way."""
    said = []
    store = import_predictions(
        case["folder"] / "store",
        **case["given"],
        embeddings={"e": as_files(case, kind)},
        imagenet_logits={"e": np.tile(case["vectors"], 200)},
        say=said.append,
    )
    stack = store.to_stack()
    np.testing.assert_array_equal(stack.embeddings["e"], case["vectors"])
    np.testing.assert_array_equal(stack.imagenet_logits["e"][:, :5], case["vectors"])
    assert ("embeddings 'e': row k is the k-th image, test images last" in said) == (
        kind in ("one array", "two npy")
    )


def test_statistics_are_matched_by_id_and_column(case):
    """Columns in another order, images of another run."""
    stats = case["stats"]
    stats[::-1].iloc[:20].to_csv(case["folder"] / "new.csv")
    stats[::-1].iloc[20:][["z", "x", "y"]].to_csv(case["folder"] / "old.csv")
    more = pd.DataFrame([[1, 2, 3]], ["elsewhere"], list("xyz"))
    said = []
    store = import_predictions(
        case["folder"] / "store",
        **case["given"],
        image_stats=[case["folder"] / "new.csv", case["folder"] / "old.csv", more],
        say=said.append,
    )
    pd.testing.assert_frame_equal(
        store.image_stats[list("xyz")], stats, check_dtype=False, check_names=False, rtol=1e-6
    )
    assert "image_stats: 1 images without predictions are left out" in said


def refused(case, match, **context):
    """Import with something wrong: the message, and nothing written."""
    with pytest.raises(ValueError, match=match):
        import_predictions(case["folder"] / "store", **case["given"], **context)
    assert not (case["folder"] / "store").exists()


def test_what_does_not_match_is_named(case):
    """Vectors of other images would be learned from without a word."""
    vectors, ids = case["vectors"], case["ids"]
    named = pd.DataFrame(vectors, index=ids)
    refused(
        case,
        r"embeddings 'e' has 40 rows; there are 40 labelled and 10 test images",
        embeddings={"e": vectors[:40]},
    )
    refused(
        case,
        r"embeddings 'e': 1 of 50 expected image ids are missing, first: 'im49'",
        embeddings={"e": named[:49]},
    )
    refused(case, r"image ids must be unique", embeddings={"e": [named, named[:3]]})
    refused(
        case,
        r"one file of embeddings 'e' names its images and another does not",
        embeddings={"e": [named[:40], vectors[40:]]},
    )
    refused(
        case,
        r"embeddings 'e' must be \(n_images, dim\); got \[\(40, 5\), \(10, 4\)\]",
        embeddings={"e": [vectors[:40], vectors[40:, :4]]},
    )
    refused(case, r"image_stats must be a CSV or Parquet file with ids", image_stats=vectors)
    refused(
        case,
        r"one table has columns that another lacks, \['x'\]",
        image_stats=[case["stats"][:40], case["stats"][40:][["y", "z"]]],
    )
    np.savez(case["folder"] / "two.npz", e=vectors, f=vectors)
    refused(
        case,
        r"two.npz holds the arrays \['e', 'f'\]: take one of them, FILE:KEY",
        embeddings={"e": case["folder"] / "two.npz"},
    )


def test_rows_without_ids_are_refused_where_their_order_is_open(case):
    """Predictions come sorted by id, vectors in the order of the labels."""
    oof = pd.DataFrame(case["given"]["out_of_fold"]["a"], case["ids"][:40], CLASSES)[::-1]
    case["given"]["out_of_fold"] = {"a": oof}
    refused(
        case,
        r"rows of embeddings 'e' have no ids, and the images stand in one order",
        embeddings={"e": case["vectors"]},
    )
    case["given"]["image_ids"] = case["ids"][:40].tolist()
    store = import_predictions(
        case["folder"] / "store", **case["given"], embeddings={"e": case["vectors"]}
    )
    assert store.image_ids.tolist() == case["ids"].tolist()
    np.testing.assert_array_equal(store.to_stack().embeddings["e"], case["vectors"])


def test_two_files_of_one_name_and_half_are_refused():
    """One of them would win."""
    with pytest.raises(ValueError, match=r"would be one model, 'e'"):
        find_context_files(["x/e_train.npy", "y/e.npy"])
