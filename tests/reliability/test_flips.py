"""`stacker verify`: every byte that changes is found, or changes nothing that anybody reads."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from features import _seal
from features.assemble import PairFeatures
from features.parquet import PairRows, read_pairs, write_pairs
from features.schema import Stack
from features.store import FeatureStore
from stacker.persistence import read_folder, write_folder
from stacker.verify import verify

N_FLIPS = 200
# The chunks and metadata of one small store have this many bytes, so all files get their share.
N_IMAGES, CLASSES = 20, ["a", "b", "c"]
IDS = [f"i{k:02}" for k in range(N_IMAGES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each kind, by name."""
    folder, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    make_store(folder / "store", rng)
    make_pairs(folder / "pairs", rng)
    tree = {"name": "x", "values": rng.random((5, 3)), "labels": sparse.csr_array(np.eye(3))}
    write_folder(folder / "model", tree, {"booster-lightgbm.txt": "tree\n" * 20})
    make_run(folder / "run", rng)
    return folder


def make_store(path, rng):
    FeatureStore.from_arrays(
        path,
        image_ids=IDS,
        classes=CLASSES,
        probabilities={
            "m": rng.random((N_IMAGES, 3)).astype(np.float32),
            "top": sparse.csr_array(np.tile([0.5, 0.0, 0.25], (N_IMAGES, 1))),
        },
        labels=[["a"], ["b", "c"]] * (N_IMAGES // 2),
        fold=np.arange(N_IMAGES) % 3,
        embeddings={"e": rng.random((N_IMAGES, 2))},
        image_stats=pd.DataFrame(rng.random((N_IMAGES, 2)), IDS, ["mean", "std"]),
        metadata=pd.DataFrame({"year": np.arange(N_IMAGES), "who": "me"}, IDS),
        attrs={"source": "test"},
        chunk_images=8,
    )


def make_pairs(path, rng):
    stack = Stack({"a": rng.random((N_IMAGES, 3)), "b": rng.random((N_IMAGES, 3))}, classes=CLASSES)
    labels = sparse.csr_array((rng.random((N_IMAGES, 3)) < 0.4).astype(np.int8))
    fold = np.arange(N_IMAGES) % 4
    features = PairFeatures(blocks=("probabilities",), candidates=2).fit(stack, labels, fold)
    known = np.ones(N_IMAGES, dtype=bool)
    write_pairs(path, PairRows(features, stack, labels, known, fold), settings={}, rows_per_part=20)


def make_run(path, rng):
    """Make the files of a training run, by the functions that write them."""
    pytest.importorskip("torch")
    import torch

    from cnn_extract.train.checkpoint import Progress, save_model, save_progress

    unit = path / "fold0"
    weights = {"w": torch.ones(4, 3)}
    save_model(unit, weights, {"fold": 0})
    save_progress(unit, Progress(epoch=2, weights=weights, log=[{"loss": 0.5}]))
    np.save(unit / "predictions.npy", rng.random((4, 3)).astype(np.float32))
    told = _seal.seal({"sha256": _seal.file_sha256(unit / "predictions.npy")})
    (unit / "predictions.json").write_text(json.dumps(told))
    (path / "recipe.toml").write_text("name = 'x'\n")
    note = {"complete": True, "recipe_sha256": _seal.file_sha256(path / "recipe.toml")}
    (path / "run.json").write_text(json.dumps(_seal.seal(note), indent=2))


def flips(folder, n_flips, seed=0):
    """(file, place) of random bytes, each byte of the folder as likely as any other."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(seed)
    # Half of them over all bytes, half over all files: small ones are hit too.
    for k in range(n_flips):
        number = rng.choice(len(files), p=sizes / sizes.sum() if k % 2 else None)
        yield files[number], int(rng.integers(sizes[number])), int(rng.integers(1, 256))


@pytest.mark.parametrize("kind", ["store", "pairs", "model", "run"])
def test_a_flipped_byte_is_found_or_harmless(made, kind):
    """Bit rot turns probabilities, labels, weights or rows into others, and nobody notices."""
    assert all(part.problems == [] for part in verify(made / kind))
    missed = []
    for file, place, change in flips(made / kind, N_FLIPS):
        data = file.read_bytes()
        changed = bytes([data[place] ^ change])
        file.write_bytes(data[:place] + changed + data[place + 1 :])
        try:
            found = any(part.problems for part in verify(made / kind))
            if not found and not same_json(file, data):
                missed.append((file.relative_to(made).as_posix(), place, data[place : place + 1]))
        finally:
            file.write_bytes(data)
    assert missed == []


def same_json(file, before):
    """Whether a JSON file reads as before: a space became a line end, say."""
    try:
        return json.loads(file.read_bytes()) == json.loads(before)
    except ValueError:
        return False


@pytest.mark.parametrize("kind", ["store", "pairs", "model", "run"])
def test_a_lost_file_is_found(made, kind, tmp_path):
    """A chunk that is gone reads as values nobody wrote, a part as fewer rows."""
    # Every third file of a store will do: they are many, of few kinds.
    step = 3 if kind == "store" else 1
    for file in sorted(file for file in (made / kind).rglob("*") if file.is_file())[::step]:
        if file.name in (".lock", "last.safetensors") or file.parent.name == "fold0":
            continue
        if "written" in file.parts:
            continue  # Gone, they say that the rows are not complete.
        hidden = tmp_path / "hidden"
        shutil.move(file, hidden)
        try:
            assert any(part.problems for part in verify(made / kind)), file
        except ValueError as error:
            assert "is no store" in str(error)  # noqa: PT017
        finally:
            shutil.move(hidden, file)


def test_damage_is_found_by_reading_too(made, tmp_path):
    """Nobody runs `stacker verify` before each fit."""
    for kind in ("store", "pairs", "model"):
        shutil.copytree(made / kind, tmp_path / kind)
    for file in (
        tmp_path / "store/probabilities/m/c/0/0",
        tmp_path / "pairs/part-00000.parquet",
        tmp_path / "model/array-0000.npy",
    ):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    store = FeatureStore.open(tmp_path / "store")
    with pytest.raises(ValueError, match=r"probabilities/m .* cannot be read .*stacker verify"):
        store.probabilities("m")
    with pytest.raises((ValueError, OSError), match=r"part-00000.parquet is damaged"):
        list(read_pairs(tmp_path / "pairs"))
    with pytest.raises(ValueError, match="was changed after it was saved"):
        read_folder(tmp_path / "model")


def test_the_command_tells_intact_damaged_and_nothing_apart(made, tmp_path):
    """Scripts that check an archive go by the exit code."""
    from stacker.cli import app

    def run(path):
        return CliRunner().invoke(app, ["verify", str(path)])

    done = run(made / "store")
    assert done.exit_code == 0, done.output
    assert "files checked, intact" in done.stdout
    shutil.copytree(made / "store", tmp_path / "store")
    (tmp_path / "store/fold/c/0").write_bytes(b"damaged")
    damaged = run(tmp_path / "store")
    assert damaged.exit_code == 1
    assert "damaged  fold/c/0" in damaged.stdout
    assert "Copy it again" in damaged.stderr
    assert run(tmp_path).exit_code == 2
    assert run(tmp_path / "absent").exit_code == 2


def test_an_unfinished_store_is_no_damaged_one(tmp_path):
    """A run that was killed is resumed, not thrown away."""
    store = FeatureStore.create(tmp_path / "s", image_ids=IDS, classes=CLASSES, chunk_images=8)
    store.require_array("probabilities/m", (3,), np.float32, ("image", "class"))
    store.write_rows("probabilities/m", 0, np.full((8, 3), 0.5))
    (found,) = verify(tmp_path / "s")
    assert found.problems == []
    assert found.notes == ["probabilities/m: unfinished, 12 of 20 images"]
