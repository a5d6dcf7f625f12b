"""The docs' Python blocks run as a reader would paste them, and every page is in the site."""

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import Stack
from features.store import FeatureStore
from stacker import PairStacker
from tests.data.load_slice import load_slice

DOCS = Path(__file__).parents[1] / "docs"
STAGE = DOCS / "_site" / "stage.py"
KNOWN = slice(0, 240)


def python_blocks(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_blocks(page, **names):
    """Run a page's blocks in order in one namespace; give it back."""
    blocks = python_blocks(page)
    assert blocks, f"{page} shows no Python example"
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture(scope="module")
def data():
    return load_slice()


def label_names(data, rows):
    return [data["classes"][row > 0].tolist() for row in data["labels"][rows]]


@pytest.fixture
def own_files(tmp_path, monkeypatch, data):
    """A folder with the files that own-predictions.md speaks of."""
    for name, probs in zip(("se101", "pnas"), data["probabilities"][[0, 4]], strict=True):
        np.save(tmp_path / f"{name}_oof.npy", probs[KNOWN])
        np.save(tmp_path / f"{name}_test.npy", probs[240:])
    names = [" ".join(own) for own in label_names(data, KNOWN)]
    table = pd.DataFrame({"image_id": data["image_id"][KNOWN], "labels": names})
    table.to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "classes.txt").write_text("\n".join(data["classes"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def demo_folder(tmp_path, monkeypatch, data):
    """What `stacker demo` leaves behind, as far as the tutorial reads it."""
    known = np.arange(300) < 240
    FeatureStore.from_arrays(
        tmp_path / "demo" / "store",
        image_ids=data["image_id"],
        classes=data["classes"],
        probabilities={"lite0": data["probabilities"][0], "lite1": data["probabilities"][4]},
        labels=data["labels"] * known[:, None],
        labels_known=known,
        fold=np.where(known, data["fold"], -1),
        split_group=data["split_group"],
        embeddings={"lite0": data["embedding_lite0"]},
    )
    names = [" ".join([*own, "tag::unseen"]) for own in label_names(data, slice(240, None))]
    table = pd.DataFrame({"image_id": data["image_id"][240:], "labels": names})
    table.to_csv(tmp_path / "demo" / "held_out_labels.csv", index=False)
    monkeypatch.chdir(tmp_path)


def test_the_tutorial_runs(demo_folder, capsys):
    """The first ten minutes of a newcomer end in an error."""
    found = run_blocks("tutorial.md")
    printed = capsys.readouterr().out
    assert "240 images have labels" in printed
    assert 0.2 < float(re.search(r"held-out images: ([\d.]+)", printed)[1]) <= 1
    assert len(found["why"])


@pytest.mark.slow
def test_the_page_on_own_predictions_runs(own_files):
    """The first thing that people try on their own data ends in an error."""
    found = run_blocks("own-predictions.md")
    assert len(found["sets"]) == 60


@pytest.mark.slow
def test_the_page_on_many_classes_keeps_everything_sparse(data):
    """A dense table of 32,000 classes would not fit the memory."""
    oof = dict(zip("ab", data["probabilities"][[0, 4]], strict=True))
    names = {"oof": oof, "labels": label_names(data, slice(None)), "classes": data["classes"]}
    found = run_blocks("many-classes.md", **names)
    assert found["sets"].format == "csr"
    assert found["sets"].nnz > 100


@pytest.mark.slow
def test_the_page_on_scikit_learn_runs(capsys):
    """What is shown to people of scikit-learn ends in an error."""
    run_blocks("scikit-learn.md")
    assert "F2 on new images" in capsys.readouterr().out


def test_the_page_on_the_store_runs(data, tmp_path, monkeypatch):
    """The first store that somebody writes is refused."""
    monkeypatch.chdir(tmp_path)
    found = run_blocks(
        "store.md",
        ids=data["image_id"],
        classes=data["classes"],
        oof={"se101": data["probabilities"][0]},
        labels=label_names(data, slice(None)),
        embeddings=data["embedding_lite0"],
    )
    assert found["frame"].shape == (300, 60)


@pytest.fixture(scope="module")
def fitted(data):
    """A small fitted stack, and the names by which the pages call what it was fitted on."""
    images, classes = np.arange(240), np.argsort(-data["labels"][:240].sum(axis=0))[:10]
    every = Stack(
        dict(zip("ab", data["probabilities"][[0, 4]][:, :, classes], strict=True)),
        image_ids=[f"image_{i:04}" for i in range(300)],
        classes=["tag::cat", "tag::dog", *data["classes"][classes[2:]]],
    )
    X, Y, groups = every[images], data["labels"][:, classes], data["split_group"]
    model = PairStacker(cv=3, blocks=("logits",), random_state=0, n_jobs=1)
    model.fit(X, Y[images], groups[images])
    new, some = every[240:], every[240:270]
    return {
        "model": model,
        **{"X": X, "Y": Y[images], "groups": groups[images], "split_group": groups[images]},
        **{"X_new": new, "Y_new": Y[240:], "X_some": some, "Y_some": Y[240:270]},
        **{"oof_proba": model.oof_proba_, "new_proba": model.predict_proba(new)},
        **{"ids": X.image_ids, "classes": X.classes},
    }


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("adapt.md", "proba"),
        ("curate.md", "issues"),
        ("decisions.md", "sets"),
        ("explain.md", "gain_importance"),
        ("features.md", "PairStacker"),
    ],
)
def test_a_page_runs_with_the_names_it_speaks_of(fitted, page, made):
    """An import is missing, or an argument has another name by now."""
    imported = {name: value for name, value in fitted.items() if name != made}
    assert made in run_blocks(page, **imported)


def test_every_page_is_in_the_navigation():
    """A page that nobody finds: it was written and left out of the site."""
    listed = {name for names in runpy.run_path(str(STAGE))["NAVIGATION"].values() for name in names}
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages - listed == set()
