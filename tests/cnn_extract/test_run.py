import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cnn_extract.cli import app
from cnn_extract.heads import HEADS
from cnn_extract.run import RefusedError, parse_models, run
from features._console import Reporter
from features.folds import check_folds
from features.store import FeatureStore
from tests.cnn_extract.conftest import TINY, arrays_of, assert_same_arrays, write_labels

torch = pytest.importorskip("torch")
MODEL = f"{TINY}.linear"


@pytest.fixture(autouse=True)
def quick_heads(monkeypatch):
    """Train heads for a few steps only: these tests look at rows, not at quality."""
    for name, config in HEADS.items():
        monkeypatch.setitem(
            HEADS, name, replace(config, epochs=2, min_steps=2, hidden=8 * (name == "mlp"))
        )


class Log(Reporter):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def log(self, message):
        self.lines.append(message)


def test_store_holds_everything(make_set, request_for, tmp_path, silent):
    """Images, labels, folds, groups, metadata, statistics, embeddings, out-of-fold rows."""
    folder, labels, lists = make_set(24, n_labelled=18)
    meta = pd.DataFrame({"image_id": list(lists), "split_group": [k // 2 for k in range(24)]})
    meta.assign(width=range(24)).to_csv(tmp_path / "meta.csv", index=False)
    request = request_for(
        folder, labels, metadata=tmp_path / "meta.csv", heads=("linear", "mlp"), tta="hflip"
    )
    summary = run(request, silent)
    store = FeatureStore.open(request.out)
    assert store.image_ids.tolist() == sorted(lists)
    assert store.classes.tolist() == ["culture::x", "tag::a", "tag::b", "tag::c", "tag::common"]
    assert store.labels_known.tolist() == [True] * 18 + [False] * 6
    assert store.models == summary.models == [MODEL, f"{TINY}.mlp"]
    assert (store.fold[:18] >= 0).all()
    assert (store.fold[18:] == -1).all()
    check_folds(store.fold, store.split_group)
    assert store.metadata["width"].tolist() == list(range(24))
    assert store.image_stats.loc["i003", ["height", "width"]].tolist() == [43, 40]
    assert np.isnan(store.fold_probabilities(MODEL)[:, :18]).all()
    attrs = store.array_attrs(f"probabilities/{MODEL}")
    assert attrs["timm_name"] == TINY
    assert (attrs["folds"], attrs["tta"], attrs["input_size"]) == (3, "hflip", 32)
    assert set(attrs["versions"]) == {"torch", "timm", "pillow"}
    assert store.to_stack().shape == (24, 2, 5)


def test_random_weights_give_no_imagenet_logits(make_set, request_for, silent):
    """The outputs of a random classifier are no predictions of ImageNet classes."""
    request = request_for(*make_set(12)[:2])
    run(request, silent)
    store = FeatureStore.open(request.out)
    assert store.imagenet_names == []
    assert store.embedding_names == [TINY]


def test_logits_of_a_checkpoint_are_written(make_set, request_for, tmp_path, silent):
    """One pass of the backbone gives embeddings and the 1,000 logits of its classifier."""
    from cnn_extract.models import create_model

    model = create_model(TINY)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    request = request_for(*make_set(12)[:2], models=[f"{TINY}={tmp_path / 'own.pth'}"])
    run(request, silent)
    store = FeatureStore.open(request.out)
    features = torch.from_numpy(store.embeddings(TINY).astype(np.float32))
    expected = model.get_classifier()(features).numpy()
    np.testing.assert_allclose(store.imagenet_logits(TINY), expected, rtol=1e-2, atol=2e-2)
    assert len(store.array_attrs(f"embeddings/{TINY}")["sha256"]) == 64


def test_zip_and_workers_give_the_same_store(make_set, request_for, tmp_path, silent):
    """Neither the container nor who decodes may change a bit."""
    folder, labels, _ = make_set(20)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for file in folder.iterdir():
            opened.write(file, f"top/{file.name}")
    one = request_for(folder, labels, out=tmp_path / "one")
    other = request_for(archive, labels, out=tmp_path / "other", workers=2)
    run(one, silent)
    run(other, silent)
    assert_same_arrays(one.out, other.out)


def test_skipped_image_is_recorded_and_shifts_no_row(make_set, request_for, tmp_path, silent):
    """--on-error skip: the store says why, and every other row is what it was."""
    folder, labels, _ = make_set(20)
    whole = request_for(folder, labels, out=tmp_path / "whole")
    run(whole, silent)
    (folder / "i009.png").write_bytes((folder / "i009.png").read_bytes()[:200])
    request = request_for(folder, labels, on_error="skip")
    summary = run(request, silent)
    assert list(summary.errors) == ["i009"]
    assert "i009.png" in summary.errors["i009"]
    assert any("i009" in line for line in summary.lines())
    store, before = FeatureStore.open(request.out), FeatureStore.open(whole.out)
    assert np.flatnonzero(store.skipped).tolist() == [9]
    assert store.errors[9] == summary.errors["i009"]
    kept = np.arange(20) != 9
    for name in ("embeddings/" + TINY, "image_stats"):
        one, other = arrays_of(request.out)[name], arrays_of(whole.out)[name]
        np.testing.assert_array_equal(one[kept], other[kept])
        assert np.isnan(one[9].astype(float)).all()
    assert store.labels[[9]].nnz == before.labels[[9]].nnz
    assert store.without_skipped().to_stack().shape[0] == 19


def test_unreadable_image_stops_by_default(make_set, request_for, silent):
    """The error names the file and the way on; with the file repaired the run goes on."""
    folder, labels, _ = make_set(20)
    good = (folder / "i009.png").read_bytes()
    (folder / "i009.png").write_bytes(good[:200])
    request = request_for(folder, labels)
    with pytest.raises(ValueError, match=r"i009\.png.*--on-error skip"):
        run(request, silent)
    with pytest.raises(ValueError, match=r"i009\.png"):
        run(request, silent)
    (folder / "i009.png").write_bytes(good)
    assert run(request, silent).errors == {}


def test_no_readable_image_at_all_is_an_error(make_set, request_for, silent):
    """There is nothing to describe, with skip neither."""
    folder, labels, _ = make_set(4)
    for file in folder.iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"no image of .* can be read: .*i000\.png"):
        run(request_for(folder, labels, on_error="skip"), silent)


class StopError(Exception):
    """Ends a run in a test."""


def stop_after(monkeypatch, n_writes):
    """Make the n-th writing of rows raise; what was written before stays."""
    real, left = FeatureStore.write_rows, [n_writes]

    def write_rows(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise StopError
        real(self, *args)

    monkeypatch.setattr(FeatureStore, "write_rows", write_rows)


@pytest.mark.parametrize("n_writes", [0, 2, 4, 7])
def test_interrupted_run_resumes_and_says_what_it_skipped(
    make_set, request_for, tmp_path, monkeypatch, silent, n_writes
):
    """Resumed equals uninterrupted, bit for bit, and complete work is not done again."""
    folder, labels, _ = make_set(20, n_labelled=16)
    whole, cut = (request_for(folder, labels, out=tmp_path / name) for name in ("whole", "cut"))
    run(whole, silent)
    with monkeypatch.context() as patch:
        stop_after(patch, n_writes)
        with pytest.raises(StopError):
            run(cut, silent)
    log = Log()
    summary = run(cut, log)
    assert f"resuming {cut.out}" in log.lines
    assert ("image_stats" in summary.already) == (n_writes >= 3)
    assert (TINY in summary.already) == (n_writes >= 6)
    if n_writes == 4:
        assert f"{TINY}: 8 images are complete and skipped" in log.lines
    assert_same_arrays(whole.out, cut.out)


def test_interrupted_run_with_other_settings_is_refused(make_set, request_for, monkeypatch, silent):
    """Half of the rows of one model and half of another would look like one."""
    folder, labels, lists = make_set(20)
    request = request_for(folder, labels)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StopError):
            run(request, silent)
    for changes, name in (
        ({"size": 64}, "size"),
        ({"seed": 1}, "seed"),
        ({"models": ["test_byobnet=none"]}, "models"),
        ({"heads": ("mlp",)}, "heads"),
        ({"tta": "hflip"}, "tta"),
    ):
        with pytest.raises(RefusedError, match=rf"unfinished run with other settings \({name}\)"):
            run(replace(request, **changes), silent)
    lists["i000"] = ["tag::b"]
    write_labels(labels, lists)
    with pytest.raises(RefusedError, match=r"\(labels\).*--force"):
        run(request, silent)
    run(replace(request, force=True), silent)


def test_complete_output_is_refused_unless_forced(make_set, request_for, silent):
    """Hours of work must not be lost by pressing the up arrow."""
    request = request_for(*make_set(12)[:2])
    run(request, silent)
    with pytest.raises(RefusedError, match=r"is complete; choose another --out, or --force"):
        run(request, silent)
    with pytest.raises(RefusedError, match=r"is complete, with other settings \(seed\)"):
        run(replace(request, seed=3), silent)
    run(replace(request, force=True, seed=3), silent)
    assert FeatureStore.open(request.out).attrs["cnn_extract"]["settings"]["seed"] == 3


def test_what_is_no_store_of_ours_is_never_deleted(make_set, request_for, tmp_path, silent):
    """--force on a home folder must not empty it."""
    folder, labels, _ = make_set(12)
    FeatureStore.create(tmp_path / "other", image_ids=["a"], classes=["b"])
    for out in (folder, labels, tmp_path / "other"):
        with pytest.raises(RefusedError, match="was not made by cnn-extract run"):
            run(request_for(folder, labels, out=out, force=True), silent)
        assert out.exists()


def test_label_of_an_absent_image_is_an_error(make_set, request_for, silent):
    """The names say whether a folder is missing or ids are spelled differently."""
    folder, labels, lists = make_set(6)
    write_labels(labels, {**lists, "ghost": ["tag::a"]})
    with pytest.raises(ValueError, match=r"1 are not in .*first: 'ghost'"):
        run(request_for(folder, labels), silent)


def test_metadata_must_cover_the_images(make_set, request_for, tmp_path, silent):
    """An image without a split group could stand on both sides of a split."""
    folder, labels, lists = make_set(12)
    meta = pd.DataFrame({"image_id": [*list(lists)[1:], "ghost"], "split_group": "a"})
    meta.to_csv(tmp_path / "meta.csv", index=False)
    with pytest.raises(ValueError, match=r"must have a line for every image; 1 have none.*'i000'"):
        run(request_for(folder, labels, metadata=tmp_path / "meta.csv"), silent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "folds must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"size": 0}, "size must be at least 1"),
        ({"tta": "vflip"}, "tta must be one of none, hflip; got 'vflip'"),
        ({"on_error": "ignore"}, "on_error must be one of stop, skip"),
        ({"heads": ("quadratic",)}, "some of linear, mlp"),
        ({"models": []}, "at least one model"),
        ({"models": ["resnt18=none"]}, "no model 'resnt18'; near names: resnet18"),
        ({"folds": 30}, "30 folds need at least as many split groups"),
    ],
)
def test_bad_settings_are_errors_and_leave_nothing(make_set, request_for, silent, changes, message):
    """A setting that cannot work must fail before any image is read."""
    request = request_for(*make_set(12)[:2], **changes)
    with pytest.raises(ValueError, match=message):
        run(request, silent)
    assert not request.out.exists()


def test_one_model_with_two_checkpoints(tmp_path):
    """Stacks often hold several checkpoints of one architecture; each needs a name."""
    for name in ("a", "b"):
        torch.save({}, tmp_path / f"{name}.pth")
    models = [f"{TINY}={tmp_path / name}.pth" for name in ("a", "b")]
    assert [b.key for b in parse_models(models)] == [TINY, f"{TINY}@b"]
    with pytest.raises(ValueError, match="named twice"):
        parse_models([*models, models[1]])


def command(request, *extra):
    made = ["run", str(request.images), "--labels", str(request.labels), "--out", str(request.out)]
    made += ["--model", request.models[0], "--size", "32", "--folds", "3", "--workers", "0"]
    return CliRunner().invoke(app, [*made, "--batch-size", "4", "--heads", "linear", *extra])


def test_exit_codes_and_streams(make_set, request_for):
    """Scripts tell done (0) and refused (2) apart; only results go to stdout."""
    folder, labels, _ = make_set(12)
    request = request_for(folder, labels)
    failed = command(replace(request, labels=folder / "absent.csv"))
    assert failed.exit_code == 2
    assert failed.stdout == ""
    assert "there is no file" in failed.stderr
    done = command(request)
    assert done.exit_code == 0, done.output
    assert f"{MODEL}" in done.stdout
    assert "images/s" in done.stdout
    assert f"{TINY}: 12/12 images" in done.stderr
    refused = command(request)
    assert refused.exit_code == 2
    assert "refused: " in refused.stderr
    forced = command(request, "--force", "--quiet")
    assert forced.exit_code == 0
    assert forced.stderr == ""


def test_half_precision_is_asked_for_by_name_and_recorded(make_set, request_for, silent, tmp_path):
    """A25: --precision does nothing, or nobody can tell how embeddings were made."""
    folder, labels, _ = make_set(8)
    full = request_for(folder, labels)
    half = request_for(folder, labels, precision="bf16", out=tmp_path / "half")
    run(full, silent)
    run(half, silent)
    one, two = (FeatureStore.open(r.out) for r in (full, half))
    name = one.embedding_names[0]
    a, b = (s.embeddings(name).astype(np.float64) for s in (one, two))
    assert (a != b).any()
    np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1 * np.abs(a).max())
    assert two.array_attrs(f"embeddings/{name}")["precision"] == "bf16"
    assert "precision" not in one.array_attrs(f"embeddings/{name}")
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, fp16"):
        run(request_for(folder, labels, precision="int4", out=tmp_path / "x"), silent)
