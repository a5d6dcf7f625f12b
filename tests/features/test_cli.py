"""`build-features` as a user meets it: what it prints, writes, resumes and refuses."""

import hashlib
import io
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.sparse import csr_array
from typer.testing import CliRunner

from features._console import Reporter
from features._specs import parse_blocks, parse_candidates
from features.assemble import PairFeatures
from features.cli import app
from features.parquet import feature_matrix, pair_columns, read_pairs
from features.store import FeatureStore

FAST = ["--blocks", "probabilities,ranks,class_prior", "--candidates", "4", "--jobs", "1"]
N_IMAGES = 60


@pytest.fixture(scope="module")
def make_store(slice_arrays):
    """Make a store of 60 images of the slice; every sixth is unlabelled and in no fold."""
    data, images = slice_arrays, np.arange(0, 300, 5)
    known = np.arange(N_IMAGES) % 6 > 0

    def make(path, **changes):
        given = {
            "image_ids": data["image_id"][images],
            "classes": data["classes"],
            "probabilities": {
                name: data["probabilities"][m][images] for m, name in enumerate(data["model"][:3])
            },
            "labels": data["labels"][images] * known[:, None],
            "labels_known": known,
            "fold": np.where(known, data["fold"][images], -1),
            "imagenet_logits": {"lite0": data["imagenet_logits_lite0"][images, :20]},
        }
        return FeatureStore.from_arrays(path, **{**given, **changes})

    return make


@pytest.fixture(scope="module")
def store(make_store, tmp_path_factory):
    """Path of the store that most tests read."""
    path = tmp_path_factory.mktemp("store") / "store"
    make_store(path)
    return path


@pytest.fixture(scope="module")
def pairs(store, tmp_path_factory):
    """Make an uninterrupted run's folder of fifteen parts."""
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    assert run(store, "--out", path, "--rows-per-part", 48, *FAST).exit_code == 0
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.iterdir())}


def test_version_and_completion_are_there():
    """One of the three commands has none, and a bug report does not say what it ran with."""
    assert {line.split()[0] for line in run("--version").stdout.splitlines()} >= {
        "pairstack",
        "zarr",
    }
    asked = {"COMP_WORDS": "build-features --expl", "COMP_CWORD": "1"}
    asked["_BUILD_FEATURES_COMPLETE"] = "complete_bash"
    done = CliRunner().invoke(app, [], prog_name="build-features", env=asked)
    assert done.output.split() == ["--explain"]


def test_rows_equal_the_engine_out_of_fold_and_new(store, tmp_path):
    """The command fits on other images than the labelled ones, or reads other folds."""
    done = run(store, "--out", tmp_path / "pairs", *FAST)
    assert done.exit_code == 0, done.stderr
    opened = FeatureStore.open(store)
    stack, known = opened.to_stack(), opened.labels_known
    features = PairFeatures(blocks=("probabilities", "ranks", "class_prior"), candidates=4)
    features.fit(stack[known], opened.labels[known], opened.fold[known])
    expected = np.concatenate([b.features.copy() for b in features.batches(stack, opened.fold)])
    tables = list(read_pairs(tmp_path / "pairs"))
    np.testing.assert_array_equal(np.concatenate([*map(feature_matrix, tables)]), expected)
    assert pair_columns(tables[0].schema) == features.columns_


def test_result_goes_to_stdout_and_log_with_rate_to_stderr(store, tmp_path):
    """A pipe reads progress as results, or a log says nothing about speed."""
    done = run(store, "--out", tmp_path / "pairs", *FAST)
    assert re.search(r"^images   60: 50 labelled, 10 unlabelled$", done.stdout, re.MULTILINE)
    assert re.search(r"^rows     720, 12 an image$", done.stdout, re.MULTILINE)
    assert re.search(r"rows: 60/60 images, [\d.,]+ images/s", done.stderr)
    assert "candidate recall below 0.9" in done.stderr
    assert "images/s" not in done.stdout


def test_quiet_prints_results_alone(store, tmp_path):
    """A cron job's mail fills with progress."""
    done = run(store, "--out", tmp_path / "pairs", "--quiet", *FAST)
    assert done.stderr == ""
    assert done.stdout.startswith("pairs ")


def test_default_blocks_say_which_are_left_out(store, tmp_path):
    """A block goes missing silently because its input does."""
    done = run(store, "--out", tmp_path / "pairs", "--candidates", "2")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("block image_stats left out: the stack has no image_stats") == 1
    blocks = {c.block for c in pair_columns(next(read_pairs(tmp_path / "pairs")).schema)}
    assert {"neighbours", "class_similarity", "combinations"} <= blocks


def test_explain_without_out_writes_nothing_and_shows_cost_and_recall(store, tmp_path, monkeypatch):
    """Asking for the cost pays it, or the numbers miss a block or a class group."""
    monkeypatch.chdir(tmp_path)
    done = run(store, "--explain", *FAST)
    assert (done.exit_code, list(tmp_path.iterdir())) == (0, [])
    for name, columns in {"probabilities": 3, "class_prior": 5}.items():
        size = f"{columns * 4 * 720 / 1000:.1f} kB"
        assert re.search(rf"^{name} +{columns} +[\d.]+ +[\d.]+ +{size}$", done.stdout, re.MULTILINE)
    for group in ("category", "creator", "tag", "all"):
        k = 12 if group == "all" else 4
        assert re.search(rf"^{group} +{k} +[01]\.\d{{4}}$", done.stdout, re.MULTILINE)
    assert "measured on 60 of 60 images" in done.stdout


def test_explain_recall_is_the_share_of_true_labels_with_a_row(store, pairs):
    """The recall that is printed is of other candidates than those written."""
    done = run(store, "--explain", *FAST)
    frame = pd.read_parquet(pairs)
    share = (frame["label"] == 1).sum() / FeatureStore.open(store).labels.sum()
    assert re.search(rf"^all +12 +{share:.4f}$", done.stdout, re.MULTILINE)


def test_explain_scales_seconds_to_all_images(store, monkeypatch):
    """Seconds of a few images are shown as those of all."""
    monkeypatch.setattr("features._build.ROWS_PER_GROUP", 12 * 15)
    done = run(store, "--explain", *FAST)
    assert "measured on 15 of 60 images, scaled to all" in done.stdout


def test_sigkill_twice_and_run_again_gives_identical_files(store, pairs, tmp_path):
    """A killed job starts from nothing, or leaves a folder that differs from a whole run's."""
    out = tmp_path / "pairs"
    command = [str(store), "--out", str(out), "--rows-per-part", "48", *FAST]
    for n_parts in (2, 7):
        kill_after(command, out, n_parts)
    assert not (out / "part-00014.parquet").exists()
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    skipped = int(re.search(r"resumed  skipped (\d+) parts", done.stdout)[1])
    assert 6 <= skipped < 15
    assert digests(out) == digests(pairs)


def kill_after(command, out, n_parts):
    """Run the command in a process of its own and kill it once it has written so many parts."""
    # A short sleep after each part keeps the run from ending between two looks at the folder.
    slow = (
        "import sys, time, features.parquet as p; write = p.write_part\n"
        "p.write_part = lambda *a: (write(*a), time.sleep(0.2))\n"
        "from features.cli import app; app(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("part-*"))) < n_parts and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_complete_output_is_refused_without_force(store, pairs):
    """Rerunning a finished command throws its result away."""
    before = digests(pairs)
    done = run(store, "--out", pairs, "--rows-per-part", 48, *FAST)
    assert done.exit_code == 2
    assert "is complete: 720 rows of 60 images" in done.stderr
    assert digests(pairs) == before


def test_force_writes_anew(store, pairs, tmp_path):
    """--force is refused too, or mixes old parts with new."""
    out = tmp_path / "pairs"
    shutil.copytree(pairs, out)
    done = run(store, "--out", out, "--rows-per-part", 720, "--force", *FAST)
    assert done.exit_code == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["_pairs.parquet", "part-00000.parquet"]


@pytest.fixture
def begun(store, tmp_path, monkeypatch):
    """Folder that a run left after two parts."""
    out, left = tmp_path / "begun", iter([True, True])

    def stop(*arguments):
        assert next(left, False), "stopped here"
        return write(*arguments)

    write = sys.modules["features.parquet"].write_part
    monkeypatch.setattr("features.parquet.write_part", stop)
    with pytest.raises(AssertionError, match="stopped here"):
        CliRunner().invoke(
            app,
            [str(store), "--out", str(out), "--rows-per-part", "48", *FAST],
            catch_exceptions=False,
        )
    monkeypatch.undo()
    return out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--candidates", "5"], "candidates was 4, is 5"),
        (["--blocks", "ranks"], "blocks was"),
        (["--rows-per-part", "96"], "rows_per_part was 48, is 96"),
    ],
)
def test_an_incomplete_output_of_other_settings_is_refused(store, begun, changed, said):
    """Two halves of a folder have different columns or candidates."""
    before = digests(begun)
    done = run(store, "--out", begun, "--rows-per-part", 48, *FAST, *changed)
    assert done.exit_code == 2
    assert said in done.stderr
    assert digests(begun) == before


def test_an_incomplete_output_of_another_store_is_refused(make_store, begun, tmp_path):
    """Half of the rows come from yesterday's predictions."""
    other = make_store(tmp_path / "other")
    fold = other.fold.copy()
    fold[fold >= 0] = (fold[fold >= 0] + 1) % 5
    other.set_fold(fold)
    done = run(tmp_path / "other", "--out", begun, "--rows-per-part", 48, *FAST)
    assert done.exit_code == 2
    assert "store was" in done.stderr


def test_memory_and_threads_may_change_when_resuming(store, pairs, begun):
    """A job that ran out of memory cannot be resumed with less."""
    settings = [*FAST[:-1], "2", "--max-memory", "200kB"]
    done = run(store, "--out", begun, "--rows-per-part", 48, *settings)
    assert done.exit_code == 0, done.stderr
    assert "skipped 2 parts" in done.stdout
    assert digests(begun) == digests(pairs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--blocks", "probabilties"], "Did you mean 'probabilities'"),
        (["--blocks", "ranks,ranks"], "names 'ranks' more than once"),
        (["--blocks", "metadata"], "needs metadata, which this stack does not have"),
        (["--blocks", "combinations:order=4"], "order must be 2 or 3"),
        (["--blocks", "combinations:rank=3"], "Block 'combinations' has (with defaults): order=2"),
        (["--blocks", "combinations:order=x"], "expected int, got 'x'"),
        (
            ["--candidates", "category=3,creator=2,tags=4"],
            "expected ['category', 'creator', 'tag']",
        ),
        (["--candidates", "category=3"], "must name every class group once"),
        (["--candidates", "many"], "must be auto, all, a number, threshold=0.01, or group=number"),
        (["--candidates", "0"], "at least 1"),
        (["--negatives", "0"], "negatives must be a share, above 0 up to 1"),
        (["--candidates", "threshold=7.5"], "0 <= threshold < 1"),
        (["--max-memory", "lots"], "max_memory must be bytes or like '4GB'"),
    ],
)
def test_bad_options_are_refused_with_the_reason(store, tmp_path, arguments, said):
    """A typing error costs a traceback, or minutes before it is noticed."""
    done = run(store, "--out", tmp_path / "pairs", *FAST, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "pairs").exists()


def test_neither_out_nor_explain_is_refused(store):
    """The command runs for minutes and shows nothing."""
    done = run(store)
    assert done.exit_code == 2
    assert "give --out FOLDER to write to, or --explain" in done.stderr


def test_a_missing_store_is_named(tmp_path):
    """A mistyped path ends in a traceback of zarr."""
    done = run(tmp_path / "nowhere", "--out", tmp_path / "pairs")
    assert done.exit_code == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"labels": None, "labels_known": None},
            r"no image of \S+ has labels\. Add them with store\.set_labels",
        ),
        (
            {"fold": None},
            r"every labelled image needs a fold; 50 of 50 in \S+ have none, first: .*set_fold",
        ),
        (
            {"fold": np.zeros(N_IMAGES, dtype=int)},
            r"at least two folds; those of \S+ all lie in fold 0",
        ),
    ],
)
def test_a_store_without_labels_or_folds_says_how_to_give_them(make_store, tmp_path, changes, said):
    """Features that read labels are fitted on none, or on the rows' own."""
    make_store(tmp_path / "store", **changes)
    done = run(tmp_path / "store", "--out", tmp_path / "pairs")
    assert done.exit_code == 2
    assert re.search(said, " ".join(done.stderr.split()))


def test_skipped_images_have_no_rows(make_store, tmp_path):
    """An unreadable image shifts the labels of all that follow."""
    made = make_store(tmp_path / "store")
    made.set_errors(np.array([2]), ["truncated"])
    done = run(tmp_path / "store", "--out", tmp_path / "pairs", *FAST)
    assert done.exit_code == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "pairs")
    kept = np.delete(made.image_ids, 2)
    assert frame["image_id"].unique().tolist() == kept.tolist()
    opened = pd.DataFrame(made.labels.toarray(), index=made.image_ids, columns=made.classes)
    known = frame[frame["label"].notna()]
    truth = opened.to_numpy()[
        opened.index.get_indexer(known["image_id"]), opened.columns.get_indexer(known["class"])
    ]
    np.testing.assert_array_equal(known["label"], truth)


def test_an_output_that_cannot_be_written_fails_with_one(store, tmp_path, monkeypatch):
    """A full disk looks like a refusal, or like success."""

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("features.parquet.write_atomically", full)
    monkeypatch.setattr("features._pair_folder.write_atomically", full)
    done = run(store, "--out", tmp_path / "pairs", *FAST)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "failed: " in done.stderr
    assert "No space left" in done.stderr


def test_help_shows_examples():
    """A newcomer has to guess how options are written."""
    done = run("--help")
    assert done.exit_code == 0
    assert "build-features store/ --out pairs/" in " ".join(done.stdout.split())


def test_options_of_blocks_take_the_type_of_their_defaults():
    """Numbers arrive as text, and fail deep inside a block."""
    assert parse_blocks("neighbours:k=5+50:sharpness=2") == (
        ("neighbours", {"k": (5, 50), "sharpness": 2.0}),
    )


def test_class_groups_may_hold_an_equals_sign():
    """A group "a=b" cannot be named."""
    assert parse_candidates("a=b=3, c=4") == {"a=b": 3, "c": 4}


def test_a_terminal_shows_a_bar_with_rate_and_time_left():
    """On a terminal, progress is lines or nothing."""
    screen = io.StringIO()
    reporter = Reporter(console=Console(file=screen, force_terminal=True, width=100))
    with reporter.progress("rows", 4) as advance:
        for _ in range(4):
            advance(1)
    assert "4/4" in screen.getvalue()
    assert "images/s" in screen.getvalue()


def test_plain_lines_tell_the_time_left(monkeypatch):
    """A log of a long run does not say when it ends."""
    monkeypatch.setattr("features._console.LINE_SECONDS", 0.0)
    screen = io.StringIO()
    reporter = Reporter(console=Console(file=screen, width=100))
    with reporter.progress("rows", 2) as advance:
        advance(1)
        advance(1)
    lines = screen.getvalue().splitlines()
    assert re.fullmatch(r"rows: 1/2 images, [\d.,]+ images/s, \d+:\d\d left", lines[0])
    assert re.fullmatch(r"rows: 2/2 images, [\d.,]+ images/s, \d+:\d\d taken", lines[1])


def test_topk_predictions_and_classes_without_groups_go_through(make_store, tmp_path):
    """A store of sparse predictions, or one without class groups, breaks the writer."""
    probs = np.where(np.arange(60) % 60 < 9, 0.5, 0.0) * np.ones((N_IMAGES, 1))
    given = {"probabilities": {"a": csr_array(probs), "b": csr_array(probs * 0.5)}}
    make_store(tmp_path / "store", classes=[f"c{k}" for k in range(60)], **given)
    done = run(tmp_path / "store", "--out", tmp_path / "pairs", "--explain", *FAST)
    assert done.exit_code == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "pairs")
    assert set(frame["class"]) == {"c0", "c1", "c2", "c3"}
    assert re.search(r"^\(none\) +4 ", done.stdout, re.MULTILINE)


def test_thresholds_and_thinned_negatives_reach_the_folder(store, tmp_path):
    """An option that is read but not handed on changes nothing."""
    out = tmp_path / "pairs"
    done = run(
        store, "--out", out, "--candidates", "threshold=0.2", "--negatives", "0.5", *FAST[:2]
    )
    assert done.exit_code == 0, done.stderr
    frame = pd.read_parquet(out)
    assert set(frame["weight"]) == {1.0, 2.0}
    assert frame.groupby("image_id").size().nunique() > 1
