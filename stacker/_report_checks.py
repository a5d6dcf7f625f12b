"""The report's data checks: suspicious labels and images seen twice, with small pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stacker._data_checks import ALIKE, HELD_OUT, DataChecks, check_data
from stacker._gallery import thumbnail_uri
from stacker._report_held_out import gain_without

if TYPE_CHECKING:
    from features.schema import Stack
    from stacker.report import HeldOut

__all__ = ["checks_section"]

N_ISSUES, N_OF_A_CLASS, N_PAIRS = 12, 2, 8
LIKELY = 0.9


def checks_section(
    model: Any,
    train: Stack | None,
    train_labels: Any,
    held_out: HeldOut | None,
    read_image: Callable[[str], bytes | None] | None,
) -> dict[str, Any] | None:
    """Numbers, rows and pictures of the data checks; None without the training images."""
    if train is None or train_labels is None:
        return None
    new = None if held_out is None else held_out.stack
    checks = check_data(model, train, train_labels, new)
    read = read_image or (lambda name: None)
    found: dict[str, Any] = {
        "issues": _issues(checks, read),
        "n_likely": int((checks.issues["chance"] >= LIKELY).sum()),
        "likely": LIKELY,
        "n_train": len(train),
        "space": checks.space,
        "alike": ALIKE,
        "pairs": None,
        "copied": None,
    }
    if checks.pairs is None:
        return found
    held = checks.pairs["second_place"] == HELD_OUT
    found |= {"pairs": _pairs(checks, read), "n_pairs": int((~held).sum())}
    if held_out is not None and checks.copied is not None and len(checks.copied):
        n_copied = int(checks.copied.sum())
        gain = gain_without(held_out, checks.copied, float(model.beta)) if n_copied else None
        found["copied"] = {"n": n_copied, "of": len(checks.copied), "gain": gain}
    return found


def _issues(checks: DataChecks, read: Callable[[str], bytes | None]) -> list[dict[str, Any]]:
    """Show the most suspect label of each of the most suspect images."""
    worst = checks.issues.drop_duplicates("image_id")
    # One class that means nothing to the models would fill the page.
    worst = worst[worst.groupby("class").cumcount() < N_OF_A_CLASS].head(N_ISSUES)
    return [
        {
            "image_id": str(row["image_id"]),
            "picture": thumbnail_uri(read(str(row["image_id"]))),
            "name": str(row["class"]),
            "kind": str(row["kind"]),
            "chance": float(row["chance"]),
            "proba": float(row["proba"]),
        }
        for row in worst.to_dict(orient="records")
    ]


def _pairs(checks: DataChecks, read: Callable[[str], bytes | None]) -> list[dict[str, Any]]:
    """Show pairs with a held-out image first: they flatter the scores."""
    assert checks.pairs is not None
    held = checks.pairs["second_place"] == HELD_OUT
    half = max(N_PAIRS // 2, N_PAIRS - int((~held).sum()))
    few = checks.pairs[held].drop_duplicates("second").head(half)
    rest = checks.pairs[~held].head(N_PAIRS - len(few))
    return [
        {
            "similarity": float(row["similarity"]),
            "sides": [
                {
                    "image_id": str(name),
                    "where": "held out" if place == HELD_OUT else f"fold {place}",
                    "picture": thumbnail_uri(read(str(name))),
                }
                for name, place in ((row[k], row[f"{k}_place"]) for k in ("first", "second"))
            ],
        }
        for part in (few, rest)
        for row in part.to_dict(orient="records")
    ]
