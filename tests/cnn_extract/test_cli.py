import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cnn_extract.cli import app
from cnn_extract.stats import stat_names
from features.folds import check_folds
from tests.cnn_extract.conftest import write_labels


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("command", ["run", "stats", "folds", "train", "imagenet", "recipes"])
def test_help_shows_an_example(command):
    """A newcomer copies the example."""
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    assert f"cnn-extract {command}" in shown.stdout


def test_version_and_completion_are_there():
    """One of the three commands has none, and a bug report does not say what it ran with."""
    assert {line.split()[0] for line in invoke("--version").stdout.splitlines()} >= {
        "torch",
        "timm",
    }
    asked = {"_CNN_EXTRACT_COMPLETE": "complete_bash", "COMP_WORDS": "cnn-extract im"}
    done = CliRunner().invoke(app, [], prog_name="cnn-extract", env=asked | {"COMP_CWORD": "1"})
    assert done.output.split() == ["imagenet"]


def test_stats_writes_a_table(make_set, tmp_path):
    """One line an image in order of id, a column a statistic."""
    folder, _, lists = make_set(5)
    done = invoke("stats", folder, "--out", tmp_path / "stats.csv", "--workers", 0)
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(tmp_path / "stats.csv", index_col="image_id")
    assert list(frame.index) == sorted(lists)
    assert tuple(frame.columns) == stat_names()
    assert frame.loc["i003", "height"] == 43


def test_stats_of_an_unreadable_image(make_set, tmp_path):
    """Stop names the file; skip leaves its line empty, at its place."""
    folder, _, _ = make_set(5)
    (folder / "i002.png").write_bytes(b"broken")
    arguments = ("stats", folder, "--out", tmp_path / "stats.csv", "--workers", 0)
    failed = invoke(*arguments)
    assert failed.exit_code == 2
    assert "i002.png" in failed.stderr
    assert not (tmp_path / "stats.csv").exists()
    done = invoke(*arguments, "--on-error", "skip")
    assert done.exit_code == 0
    assert "1 skipped" in done.stdout
    frame = pd.read_csv(tmp_path / "stats.csv")
    assert np.flatnonzero(frame["height"].isna()).tolist() == [2]


TRAIN = ("--recipe", "imet-lopuhin", "--model", "test_resnet=none")
IMAGENET = ("imagenet", "--model", "test_resnet=none")


@pytest.mark.parametrize(
    ("command", "option", "value", "said"),
    [
        (("stats",), "--on-error", "Stop", "on_error must be one of stop, skip; got 'Stop'"),
        (("stats",), "--workers", -1, "workers must be at least 0; got -1"),
        (IMAGENET, "--on-error", "Stop", "on_error must be one of stop, skip; got 'Stop'"),
        (IMAGENET, "--tta", "vflip", "tta must be one of none, hflip; got 'vflip'"),
        (IMAGENET, "--batch-size", 0, "batch_size must be at least 1; got 0"),
        (("train", *TRAIN), "--on-error", "Stop", "on_error must be one of stop, skip; got 'Stop'"),
        (("train", *TRAIN), "--seed", -1, "seed must be at least 0; got -1"),
    ],
)
def test_a_misspelt_setting_is_refused(make_set, tmp_path, command, option, value, said):
    """`--on-error Stop` left unreadable images out, and `--tta vflip` ended in a traceback."""
    folder, labels, _ = make_set(3)
    name, *rest = command
    given = ["--labels", labels] if name == "train" else []
    done = invoke(name, folder, *rest, *given, "--out", tmp_path / "out.csv", option, value)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_folds_keep_groups_together(tmp_path):
    """The table can be joined to the labels, and no group parts."""
    lists = {f"i{k}": [f"tag::{k % 3}"] for k in range(30)}
    labels = write_labels(tmp_path / "labels.csv", lists)
    group = [f"g{k // 3}" for k in range(30)]
    meta = tmp_path / "meta.csv"
    pd.DataFrame({"image_id": list(lists), "split_group": group}).to_csv(meta, index=False)
    out = tmp_path / "folds.csv"
    done = invoke("folds", labels, "--metadata", meta, "--out", out, "--folds", 5)
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(out)
    assert frame["image_id"].tolist() == list(lists)
    assert np.bincount(frame["fold"]).tolist() == [6] * 5
    check_folds(frame["fold"], group)


@pytest.mark.parametrize("command", ["stats", "folds"])
def test_existing_table_is_refused_unless_forced(make_set, tmp_path, command):
    """A table made by hand must not be overwritten unasked."""
    folder, labels, _ = make_set(6)
    out = tmp_path / "out.csv"
    out.write_text("mine")
    source = (folder,) if command == "stats" else (labels, "--folds", 2)
    refused = invoke(command, *source, "--out", out)
    assert refused.exit_code == 2
    assert out.read_text() == "mine"
    assert invoke(command, *source, "--out", out, "--force").exit_code == 0
    assert out.read_text() != "mine"


def test_folds_without_groups_in_the_metadata_is_an_error(tmp_path):
    """Folds that silently ignore the groups would leak."""
    labels = write_labels(tmp_path / "labels.csv", {"a": ["x"], "b": ["x"]})
    (tmp_path / "meta.csv").write_text("image_id,width\na,1\nb,2\n")
    arguments = ("folds", labels, "--out", tmp_path / "f.csv", "--folds", 2, "--metadata")
    failed = invoke(*arguments, tmp_path / "meta.csv")
    assert failed.exit_code == 2
    assert "must have a column split_group" in failed.stderr
    (tmp_path / "meta.csv").write_text("image_id,split_group\na,1\n")
    assert "first: 'b'" in invoke(*arguments, tmp_path / "meta.csv").stderr


def test_empty_split_group_is_an_error(tmp_path):
    """All images without a group would be taken for one group, and land in one fold."""
    labels = write_labels(tmp_path / "labels.csv", {"a": ["x"], "b": ["x"], "c": ["x"]})
    (tmp_path / "meta.csv").write_text("image_id,split_group\na,1\nb,\nc,\n")
    failed = invoke(
        *("folds", labels, "--out", tmp_path / "f.csv", "--folds", 2),
        *("--metadata", tmp_path / "meta.csv"),
    )
    assert failed.exit_code == 2
    assert "2 have none, first: 'b', 'c'" in failed.stderr
