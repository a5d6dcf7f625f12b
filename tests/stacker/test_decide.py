import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stacker import FBetaDecision
from stacker._decide import decide_file
from stacker.decision import assign_one_to_one


def test_assignment_is_the_best_permutation_of_each_domain(rng):
    """Within a domain the product of probabilities is the highest of all permutations."""
    probs = rng.random((8, 4))
    domains = np.repeat(["a", "b"], 4)
    assigned = assign_one_to_one(probs, domains)
    for mine in (slice(0, 4), slice(4, 8)):
        best = max(
            itertools.permutations(range(4)), key=lambda p: np.log(probs[mine][range(4), p]).sum()
        )
        assert assigned[mine].tolist() == list(best)
    np.testing.assert_array_equal(assign_one_to_one(sp.csr_array(probs), domains), assigned)


def test_assignment_reuses_classes_where_images_outnumber_them(rng):
    """Five images and two classes: no class is used more than three times."""
    assigned = assign_one_to_one(rng.random((5, 2)))
    assert np.bincount(assigned).max() <= 3


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_decide_file_writes_a_set_for_every_image(suffix, rng, tmp_path, simulate):
    """Fitted on the labelled images in any order, applied to all, in the form of labels.csv."""
    probs, Y = simulate(60)
    names = np.array([f"{'culture' if c < 4 else 'tag'}::c{c}" for c in range(9)])
    table = pd.DataFrame(probs, columns=names).assign(image_id=[f"i{i}" for i in range(60)])
    path = tmp_path / f"probs{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    shown = rng.permutation(60)[:40]
    cells = [" ".join(names[Y[i] == 1]) for i in shown]
    pd.DataFrame({"image_id": [f"i{i}" for i in shown], "labels": cells}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    out = tmp_path / "predictions.csv"
    summary = decide_file(path, labels=tmp_path / "labels.csv", out=out, strategy="group")
    groups = [name.split("::")[0] for name in names]
    decision = FBetaDecision(strategy="group", class_groups=groups).fit(probs[shown], Y[shown])
    wanted = [" ".join(names[row == 1]) for row in decision.predict(probs)]
    written = pd.read_csv(out, keep_default_na=False)
    assert written["labels"].tolist() == wanted
    assert summary["n_images"] == 60
    assert summary["n_labelled"] == 40


@pytest.mark.parametrize(
    ("ids", "cell", "message"),
    [
        (["x", "i1"], "a", "that .* lacks"),
        (["i0", "i0"], "a", r"l\.csv: image ids must be unique; .*'i0'"),
        (["i0", "i1"], "nowhere", "without a column"),
    ],
)
def test_decide_file_names_what_does_not_fit(ids, cell, message, tmp_path):
    """Ids and classes are matched by name; what does not match is an error."""
    pd.DataFrame({"image_id": ["i0", "i1"], "a": [0.1, 0.9]}).to_csv(
        tmp_path / "p.csv", index=False
    )
    pd.DataFrame({"image_id": ids, "labels": cell}).to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(ValueError, match=message):
        decide_file(tmp_path / "p.csv", labels=tmp_path / "l.csv", out=tmp_path / "o.csv")


def test_decide_file_takes_names_that_pandas_takes_for_gaps(tmp_path):
    """An image called NA lost its labels, a class called null was no label."""
    (tmp_path / "p.csv").write_text("image_id,null,b\nNA,0.9,0.1\nnan,0.1,0.9\nNone,0.8,0.1\n")
    (tmp_path / "l.csv").write_text("image_id,labels\nNA,null\nnan,b\n")
    told = decide_file(
        tmp_path / "p.csv", labels=tmp_path / "l.csv", out=tmp_path / "o.csv", strategy="global"
    )
    assert told["n_labelled"] == 2
    written = (tmp_path / "o.csv").read_text()
    assert written == "image_id,labels\nNA,null\nnan,b\nNone,null\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image_id,a\ni0,0.5\ni1,nan\n", r"model 'p\.csv', image 'i1', class 'a', value nan"),
        ("image_id,a\ni0,0.5\ni1,1.5\n", r"image 'i1', class 'a'.*Apply a sigmoid"),
        ("image_id,a\ni0,0.5\ni1,x\n", r"p\.csv: column 'a' must hold numbers; image 'i1'"),
        ("image_id;a\ni0;0.5\n", r"p\.csv must have the columns .*semicolons"),
        ("image_id,a b\ni0,0.9\ni1,0.9\n", r"class 'a b' holds the separator"),
    ],
    ids=["NaN", "logits", "text", "semicolons", "a space in a name"],
)
def test_decide_file_says_what_to_correct(table, message, tmp_path):
    """Errors named a position in an array; names with spaces were written as two labels."""
    (tmp_path / "p.csv").write_text(table)
    (tmp_path / "l.csv").write_text("image_id,labels\ni0,\n")
    with pytest.raises(ValueError, match=message):
        decide_file(
            tmp_path / "p.csv",
            labels=tmp_path / "l.csv",
            out=tmp_path / "o.csv",
            strategy="top_k",
            min_labels=1,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.csv", "p.csv"]
