"""`stacker demo`: nothing held out is seen before it is scored; the table is complete."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from features.store import FeatureStore
from stacker import demo
from stacker._progress import Log
from stacker.datasets import load_openclipart

SETTINGS = demo.DemoSettings(n_images=160, backbones=("a", "b"))
TITLES = ("Best single model", "Mean", "Logit mean", "Per-class logistic stacking", "Pair stack")


def read_labels(path):
    with path.open(newline="") as file:
        return {row["image_id"]: row["labels"].split() for row in csv.DictReader(file)}


def fake_extraction(out):
    """Write the store that ``cnn-extract`` would, with noisy probabilities instead of a CNN's."""
    labels = read_labels(out / "labels.csv")
    with (out / "meta.csv").open(newline="") as file:
        meta = list(csv.DictReader(file))
    truth = load_openclipart()
    classes = sorted({name for names in labels.values() for name in names})
    columns = [list(truth.classes).index(name) for name in classes]
    ids = [row["image_id"] for row in meta]
    groups = [row["split_group"] for row in meta]
    rows = [list(truth.image_ids).index(name) for name in ids]
    Y = truth.labels.toarray()[rows][:, columns]
    known = np.array([name in labels for name in ids])
    rng = np.random.default_rng(0)
    FeatureStore.from_arrays(
        out / "store",
        image_ids=ids,
        classes=classes,
        probabilities={
            name: np.clip(0.5 * Y + 0.45 * rng.random(Y.shape) ** 3, 0, 1) for name in ("x", "y")
        },
        labels=Y * known[:, None],
        labels_known=known,
        fold=np.where(known, np.unique(groups, return_inverse=True)[1] % 2, -1),
        split_group=groups,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small demo whose CNN part is faked; its folder, table and the commands it ran."""
    out, commands = tmp_path_factory.mktemp("demo") / "out", []

    def run_tool(module, name, arguments, log):
        commands.append([name, *arguments])
        if name == "cnn-extract":
            fake_extraction(out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_run_tool", run_tool)
        table = demo.run_demo(out, SETTINGS, log=Log(quiet=True))
    return SimpleNamespace(out=out, table=table, commands=commands)


def test_held_out_images_have_no_labels_before_they_are_scored(finished):
    """A label or a near-duplicate in training would make the table worthless."""
    train = read_labels(finished.out / "labels.csv")
    test = read_labels(finished.out / "held_out_labels.csv")
    with (finished.out / "meta.csv").open(newline="") as file:
        group = {row["image_id"]: row["split_group"] for row in csv.DictReader(file)}
    assert not set(train) & set(test)
    assert not {group[name] for name in train} & {group[name] for name in test}
    assert set(train) | set(test) == set(group)
    assert len(test) / len(group) == pytest.approx(0.2, abs=0.02)


def test_images_written_are_the_ones_listed(finished):
    """Extraction reads the folder; a stray file would become a row."""
    files = {path.stem for path in (finished.out / "images").iterdir()}
    with (finished.out / "meta.csv").open(newline="") as file:
        assert files == {row["image_id"] for row in csv.DictReader(file)}


def test_the_table_has_every_row_and_column_of_the_issue(finished):
    """The comparison must show the blends beside the stack."""
    titles = " | ".join(finished.table.titles.values())
    assert all(title in titles for title in TITLES)
    assert list(finished.table.scores.columns) == ["f2_samples", "f2_macro", "f2_micro", "map"]
    assert finished.table.scores.notna().all().all()
    gain = finished.table.gain("f2_samples")
    assert gain.low <= gain.difference <= gain.high


def test_the_tools_are_called_as_the_contract_says(finished):
    """The demo must show the commands that users type."""
    extract, build = finished.commands
    out = str(finished.out)
    assert extract == [
        "cnn-extract", "run", f"{out}/images", "--labels", f"{out}/labels.csv",
        "--metadata", f"{out}/meta.csv", "--model", "a", "--model", "b",
        "--heads", "linear,mlp", "--out", f"{out}/store",
    ]  # fmt: skip
    assert build == ["build-features", f"{out}/store", "--out", f"{out}/pairs"]


def test_the_report_shows_pictures_and_the_scores_are_written(finished):
    """The page is what a newcomer looks at."""
    page = (finished.out / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 12
    assert len(page) < 5_000_000
    scores = json.loads((finished.out / "scores.json").read_text())
    assert scores["settings"]["n_images"] == 160
    assert scores["scores"]["stack"]["map"] == finished.table.scores.loc["stack", "map"]


def test_a_complete_demo_is_refused_without_force(finished):
    """Ten minutes of results must not be replaced by mistake."""
    with pytest.raises(FileExistsError, match=r"is complete.*--force"):
        demo.run_demo(finished.out, SETTINGS, log=Log(quiet=True))


def test_a_demo_killed_after_a_tool_had_ended_resumes(finished, tmp_path, monkeypatch):
    """The tool refuses its own complete output, and the demo can only be begun anew."""
    out = tmp_path / "d"
    shutil.copytree(finished.out, out)
    for name in ("scores.json", "steps.json"):
        (out / name).unlink()
    calls = []
    monkeypatch.setattr(demo, "_run_tool", lambda module, name, *rest: calls.append(name))
    monkeypatch.setattr(demo, "_fit_and_predict", stop)
    store = FeatureStore.open(out / "store", "r+")
    for complete, called in ((False, ["cnn-extract", "build-features"]), (True, [])):
        (out / "steps.json").unlink(missing_ok=True)
        store.update_attrs({"cnn_extract": {"complete": complete}})
        if complete:
            write_pairs_of(store, out / "pairs")
        calls.clear()
        with pytest.raises(Stopped):
            demo.run_demo(out, SETTINGS, log=Log(quiet=True))
        assert calls == called


class Stopped(Exception):
    """Ends a demo before it fits."""


def stop(*arguments):
    """Fit nothing."""
    raise Stopped


def write_pairs_of(store, path):
    """Build a small pair folder."""
    from features._build import Request, build

    build(Request(str(store.path), path, blocks=(("probabilities", {}),), candidates=2))


def test_an_unfinished_demo_with_other_settings_is_refused(tmp_path):
    """Resuming with another subset would mix two data sets in one store."""
    (tmp_path / "settings.json").write_text(json.dumps({"n_images": 7}))
    with pytest.raises(FileExistsError, match="other settings"):
        demo.run_demo(tmp_path, SETTINGS, log=Log(quiet=True))


def test_a_failing_tool_ends_the_demo_with_its_name(tmp_path, monkeypatch):
    """The exit code is 1 and the message names the step and how to go on."""
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    from stacker.cli import app

    result = CliRunner().invoke(app, ["demo", "--n-images", "100", "--out", str(tmp_path / "d")])
    assert result.exit_code == 1
    assert "cnn-extract ended with exit code 1" in result.stderr
    assert "resume" in result.stderr


@pytest.mark.slow
@pytest.mark.weights
def test_the_whole_demo_runs_on_real_images(tmp_path):
    """Images to table with nothing faked."""
    from stacker.cli import app

    out = tmp_path / "d"
    result = CliRunner().invoke(app, ["demo", "--n-images", "300", "--out", str(out), "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert "Pair stack" in result.stdout
    assert (out / "report.html").exists()
