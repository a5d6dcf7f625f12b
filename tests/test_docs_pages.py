"""The docs' Python blocks run as a reader would paste them, and every page is in the site."""

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import cnn_extract.cli
import features.cli
import stacker.cli
import stacker.tuning
from features import Stack
from features.store import FeatureStore
from stacker import PairStacker
from tests.data.load_slice import load_slice

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAGE = DOCS / "_site" / "stage.py"
KNOWN = slice(0, 240)
COMMANDS = {"stacker": stacker.cli, "build-features": features.cli, "cnn-extract": cnn_extract.cli}


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
    (tmp_path / "test.txt").write_text("\n".join(data["image_id"][240:]), encoding="utf-8")
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
    arrays = [str(path) for path in sorted(Path().glob("*_*.npy"))]
    given = ["--labels", "labels.csv", "--classes", "classes.txt", "--test-ids", "test.txt"]
    Path("vectors").mkdir()
    np.save("vectors/train.npy", np.ones((240, 64)))
    np.save("vectors/test.npy", np.ones((60, 64)))
    for part in ("train", "test"):
        given += ["--embeddings", f"se101=vectors/{part}.npy"]
    made = CliRunner().invoke(stacker.cli.app, ["import", *arrays, *given, "--out", "store"])
    assert made.exit_code == 0, made.output
    found = run_blocks("own-predictions.md")
    assert len(found["sets"]) == 60
    assert FeatureStore.open("store").embeddings("se101").shape == (300, 64)


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


def test_the_page_on_fitting_runs(fitted, data, tmp_path):
    """A store with fold models is stacked by a function that is gone."""
    model, new = fitted["model"], fitted["X_new"]
    store = FeatureStore.from_arrays(
        tmp_path / "store",
        image_ids=new.image_ids,
        classes=new.classes,
        probabilities=new.probabilities,
    )
    for name, probs in new.probabilities.items():
        store.add_fold_probabilities(name, [probs, probs])
    found = run_blocks("fitting.md", model=model, store=store)
    assert found["proba"].shape == (60, 10)


@pytest.mark.slow
def test_the_page_on_tuning_runs(fitted, tmp_path, monkeypatch):
    """An argument of `tune` has another name by now."""
    search = stacker.tuning.tune
    monkeypatch.setattr("stacker.tuning.tune", lambda *a, **k: search(*a, **{**k, "n_trials": 1}))
    monkeypatch.chdir(tmp_path)
    assert len(run_blocks("tuning.md", **fitted)["best"].trials_) == 1


def test_the_page_on_interfaces_runs():
    """The lines that turn the log on fail."""
    run_blocks("interfaces.md")


def test_every_page_is_in_the_navigation():
    """A page that nobody finds: it was written and left out of the site."""
    listed = {name for names in runpy.run_path(str(STAGE))["NAVIGATION"].values() for name in names}
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages - listed == set()


def links(page):
    """Files that a page links to, of those in the repository."""
    found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in found if "://" not in link]


def test_every_page_is_reached_from_the_readme_without_the_site():
    """On a code host there is no navigation: a page that nobody links is not found."""
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            linked = links(page)
            assert [link for link in linked if not link.exists()] == [], page
            waiting += linked
    assert set(DOCS.glob("*.md")) - seen == set()


def commands_of(page):
    """Commands that a page shows, in blocks and in running text, as lists of words."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in [*blocks.splitlines(), *spans]:
        for part in re.split(r"[#;|]", line.replace("\n", " ")):
            words = part.split()
            if len(words) > 1 and words[0] in COMMANDS and words[1] not in ("->", ":"):
                yield words


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name
)
def test_commands_in_the_docs_have_these_options(page):
    """A reader pastes a command and is told that there is no such option."""
    for name, *words in commands_of(page):
        command = typer.main.get_command(COMMANDS[name].app)
        if hasattr(command, "commands"):
            chosen = next((word for word in words if not word.startswith("-")), None)
            assert chosen is None or chosen.rstrip(",.") in command.commands, words
            command = command.commands.get(chosen, command)
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        given = {word.strip("[].,").split("=")[0] for word in words}
        missing = {word for word in given if word.startswith("--")} - known - {"--help"}
        assert missing == set(), f"{name} {' '.join(words)}"
