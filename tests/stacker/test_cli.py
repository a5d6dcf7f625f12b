"""The ``stacker`` command: results to stdout, log to stderr, exit codes, whole outputs."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from features.store import FeatureStore
from stacker import PairStacker
from stacker.cli import app

SLICE = Path(__file__).parents[1] / "data" / "openclipart_slice.npz"
FAST = ("mean", "logit_mean", "selection", "logistic", "best_single", "stack")


def run(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """240 images in 2 folds with labels, 60 without, 12 classes, two models."""
    with np.load(SLICE) as data:
        part = {key: data[key] for key in data.files}
    columns = np.sort(np.argsort(-part["labels"].sum(axis=0))[:12])
    known = np.arange(300) < 240
    path = tmp_path_factory.mktemp("cli") / "store"
    FeatureStore.from_arrays(
        path,
        image_ids=part["image_id"],
        classes=part["classes"][columns],
        probabilities={str(part["model"][m]): part["probabilities"][m][:, columns] for m in (0, 3)},
        labels=part["labels"][:, columns] * known[:, None],
        labels_known=known,
        fold=np.where(known, part["fold"] % 2, -1),
        split_group=part["split_group"],
    )
    return path


@pytest.fixture(scope="module")
def unseen_store(store):
    """Make a store of the 60 images alone, with their labels."""
    with np.load(SLICE) as data:
        part = {key: data[key] for key in data.files}
    whole = FeatureStore.open(store)
    columns = [list(part["classes"]).index(name) for name in whole.classes]
    rest = whole.subset(~whole.labels_known)
    path = store.parent / "unseen"
    FeatureStore.from_arrays(
        path,
        image_ids=rest.image_ids,
        classes=rest.classes,
        probabilities={name: rest.probability_array(name) for name in rest.models},
        labels=part["labels"][240:][:, columns],
        split_group=rest.split_group,
    )
    return path


@pytest.fixture(scope="module")
def model(store):
    path = store.parent / "model"
    result = run("fit", store, "--out", path, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "out-of-fold" in result.stdout
    return path


def test_version_names_the_libraries():
    """A bug report needs them in one command."""
    result = run("--version")
    assert result.exit_code == 0
    named = {line.split()[0] for line in result.stdout.splitlines()}
    assert named >= {"pairstack", "lightgbm", "optuna"}


def test_predictions_are_not_written_under_the_name_of_another_format(model, store, tmp_path):
    """A CSV named .parquet, which no Parquet reader opens."""
    result = run("predict", model, store, "--all", "--out", tmp_path / "sets.parquet")
    assert result.exit_code == 2
    assert "End it in .csv" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_shows_an_example_for_every_command():
    """`--help` is where people look first."""
    for name in (
        "demo",
        "compare",
        "fit",
        "predict",
        "evaluate",
        "report",
        "decide",
        "curate",
        "tune",
        "import",
        "verify",
    ):
        assert "Example: stacker" in run(name, "--help").stdout, name


@pytest.fixture(scope="module")
def compared(store):
    path = store.parent / "scores.json"
    result = run("compare", store, "--json", path, "--quiet")
    assert result.exit_code == 0, result.stderr
    return result, path


def test_compare_writes_the_json_of_the_contract(compared):
    """Scripts read these very keys."""
    found = json.loads(compared[1].read_text())
    assert list(found) == ["average", "scores", "best_blend", "gain", "interval", "n_images"]
    assert set(found["scores"]) == set(FAST)
    assert found["average"] == "samples"
    assert found["n_images"] == 240
    best = max(found["scores"][name] for name in FAST[:4])
    assert found["scores"][found["best_blend"]] == best
    assert found["gain"] == pytest.approx(found["scores"]["stack"] - best)
    assert found["interval"][0] <= found["gain"] <= found["interval"][1]


CHOSEN = ("--blocks", "probabilities,ranks", "--candidates", "6", "--jobs", 1)


def test_compare_judges_the_stack_that_fit_would_make(store, monkeypatch):
    """People compare with options, and the defaults are scored."""
    given = {}
    monkeypatch.setattr("stacker._compare.compare", lambda *a, **k: given.update(model=a[3]) or 1)
    monkeypatch.setattr("stacker.cli.print_score_table", lambda *a, **k: None)
    result = run("compare", store, *CHOSEN, "--booster", "xgboost", "--trials", 3, "--quiet")
    assert result.exit_code == 0, result.stderr
    model = given["model"]
    assert [name for name, _ in model.blocks] == ["probabilities", "ranks"]
    assert (model.candidates, model.n_jobs, model.n_trials) == (6, 1, 3)
    assert model.booster == "xgboost"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--booster", "lightgbn"), "must be of ['lightgbm', 'xgboost']"),
        (("--booster", "lightgbm,xgboost", "--trials", 3), "tuning takes one booster at a time"),
        (("--blocks", "neighbors"), "neighbours"),
    ],
)
def test_compare_refuses_what_fit_would_refuse_before_any_work(store, monkeypatch, options, said):
    """The blends of a fold took minutes, then a name was refused."""
    monkeypatch.delattr("stacker._compare.compare")
    result = run("compare", store, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_fit_says_that_the_model_is_its_base(store, tmp_path):
    """Two equal scores, and nobody knows whether boosting failed or found nothing."""
    arguments = ("--blocks", "logits", "--booster", "xgboost")
    result = run("fit", store, "--out", tmp_path / "model", *arguments)
    assert result.exit_code == 0, result.stderr
    assert PairStacker.load(tmp_path / "model").shrinkage_ == 0
    assert "the model is its base" in result.stderr


def test_curate_names_its_files_as_they_are_called(store, tmp_path):
    """`label issues.csv` was shown, and is not there."""
    result = run("curate", store, "--out", tmp_path / "curated", "--quiet")
    assert result.exit_code == 0, result.stderr
    for file in (tmp_path / "curated").iterdir():
        assert file.name in result.stdout


def test_fit_takes_blocks_and_candidates(store, tmp_path):
    """What is chosen on the command line does not reach the model."""
    result = run("fit", store, "--out", tmp_path / "model", *CHOSEN, "--quiet")
    assert result.exit_code == 0, result.stderr
    fitted = PairStacker.load(tmp_path / "model")
    assert {name.split(":")[0] for name in fitted.feature_names_} >= {"p", "rank"}
    assert not [name for name in fitted.feature_names_ if name.startswith("neighbours")]
    assert fitted.candidates == 6


def test_quiet_prints_the_table_alone(compared):
    """Results go to stdout; with --quiet nothing else is said."""
    result, _ = compared
    assert "Pair stack" in result.stdout
    assert result.stderr == ""


def test_an_output_that_exists_is_refused_before_any_work(compared, store):
    """Hours of work must not end in a refusal, nor overwrite earlier results."""
    _, path = compared
    before = path.read_bytes()
    result = run("compare", store, "--json", path)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert path.read_bytes() == before


def test_predict_writes_the_form_of_labels_csv(model, store, tmp_path):
    """A Kaggle submission is one rename away."""
    out = tmp_path / "predictions.csv"
    result = run("predict", model, store, "--out", out, "--label-column", "attribute_ids")
    assert result.exit_code == 0, result.stderr
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    whole = FeatureStore.open(store)
    assert rows[0] == ["image_id", "attribute_ids"]
    assert [row[0] for row in rows[1:]] == list(whole.image_ids[240:])
    assert {name for row in rows[1:] for name in row[1].split()} <= set(whole.classes)
    assert run("predict", model, store, "--out", out).exit_code == 2
    assert run("predict", model, store, "--out", out, "--all", "--force").exit_code == 0
    assert len(out.read_text().splitlines()) == 301


def test_evaluate_scores_stack_and_base_on_unseen_images(model, unseen_store, tmp_path):
    """The stack's score alone says nothing: its base stands beside it."""
    out = tmp_path / "scores.json"
    result = run("evaluate", model, unseen_store, "--json", out)
    assert result.exit_code == 0, result.stderr
    scores = json.loads(out.read_text())["scores"]
    assert {"base", "stack"} <= set(scores)
    assert set(scores["stack"]) >= {"f2_samples", "f2_macro", "f2_micro", "map"}


def test_report_of_a_saved_model_is_one_page(model, store, unseen_store, tmp_path):
    """The page about a model must not need the process that fitted it."""
    out = tmp_path / "report.html"
    result = run("report", model, "--store", unseen_store, "--trained-on", store, "--out", out)
    assert result.exit_code == 0, result.stderr
    page = out.read_text()
    assert 'id="scores"' in page
    assert 'id="importance"' in page
    assert page.count("<svg") == 3
    assert 'id="checks"' in page
    wrong = run("report", model, "--trained-on", unseen_store, "--out", tmp_path / "r.html")
    assert wrong.exit_code == 2
    assert "fitted on 240 images" in wrong.stderr
    assert run("report", model, "--out", out).exit_code == 2
    (tmp_path / "images").mkdir()
    page = ("report", model, "--store", unseen_store, "--out", tmp_path / "r.html")
    empty = run(*page, "--images", tmp_path / "images")
    assert empty.exit_code == 2
    assert "An id is the path inside, without the extension" in empty.stderr


def test_decide_takes_probabilities_from_anywhere(store, tmp_path):
    """One table of probabilities and some labels are enough for label sets."""
    whole = FeatureStore.open(store)
    frame = whole.probabilities(whole.models[0]).reset_index(names="image_id")
    frame.to_parquet(tmp_path / "probs.parquet")
    names = np.array([str(name) for name in whole.classes])
    rows = [" ".join(names[row > 0]) for row in whole.labels.toarray()[:240]]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("image_id", "labels"), *zip(whole.image_ids[:240], rows, strict=True)]
        )
    arguments = ["--labels", tmp_path / "labels.csv", "--out", tmp_path / "p.csv"]
    result = run("decide", tmp_path / "probs.parquet", *arguments, "--strategy", "global")
    assert result.exit_code == 0, result.stderr
    assert "rule: global" in result.stdout
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 301
    assert run("decide", tmp_path / "probs.parquet", *arguments).exit_code == 2


@pytest.mark.parametrize("command", ["compare", "fit", "evaluate", "predict"])
def test_a_store_that_is_not_there_is_refused(command, tmp_path):
    """Exit code 2 and one line, no traceback."""
    gone = tmp_path / "gone"
    arguments = {
        "compare": [gone],
        "fit": [gone, "--out", tmp_path / "m"],
        "evaluate": [gone, gone],
        "predict": [gone, gone, "--out", tmp_path / "p.csv"],
    }[command]
    result = run(command, *arguments)
    assert result.exit_code == 2
    assert str(gone) in result.stderr
    assert "Traceback" not in result.stderr


def test_labels_without_folds_cannot_be_compared(store, tmp_path):
    """Without folds a nested comparison would silently become something else."""
    whole = FeatureStore.open(store)
    path = tmp_path / "nofold"
    FeatureStore.from_arrays(
        path,
        image_ids=whole.image_ids,
        classes=whole.classes,
        probabilities={"a": whole.probability_array(whole.models[0])},
        labels=whole.labels,
    )
    result = run("compare", path)
    assert result.exit_code == 2
    assert "at least two folds" in result.stderr


def test_the_command_never_imports_torch():
    """Both torch's and LightGBM's OpenMP runtimes clash in one process."""
    code = (
        "import sys, stacker.cli, stacker.demo, stacker.report, stacker.evaluation; "
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tune_fits_with_the_best_trial_and_resumes(store, tmp_path):
    """The storage keeps finished trials; the second run adds to them and writes its model."""
    storage, out = tmp_path / "study.db", tmp_path / "tuned"
    first = run(
        *("tune", store, "--out", out, "--trials", 2, "--storage", storage, "--jobs", 1, "--quiet")
    )
    assert first.exit_code == 0, first.stderr
    assert "2 trials" in first.stdout
    again = tmp_path / "again"
    second = run("tune", store, "--out", again, "--trials", 3, "--storage", storage, "--quiet")
    assert second.exit_code == 0, second.stderr
    assert "3 trials" in second.stdout
    assert (again / "model.json").is_file()
