"""README's Python blocks run as a reader would paste them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from stacker.cli import app
from tests.data.load_slice import load_slice

README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A folder with the files a reader would have: OOF arrays per model and a labels CSV."""
    data = load_slice()
    known, new = slice(0, 240), slice(240, 300)
    for name, probs in zip(("se101", "pnas"), data["probabilities"][[0, 4]], strict=True):
        np.save(tmp_path / f"{name}_oof.npy", probs[known])
        np.save(tmp_path / f"{name}_test.npy", probs[new])
    names = [" ".join(data["classes"][row > 0]) for row in data["labels"][known]]
    labels = pd.DataFrame({"image_id": data["image_id"][known], "labels": names})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    sample = pd.DataFrame({"image_id": data["image_id"][new], "labels": ""})
    sample.to_csv(tmp_path / "sample_submission.csv", index=False)
    (tmp_path / "classes.txt").write_text("\n".join(data["classes"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_readme_python_blocks_run_in_order(own_files):
    """A reader who pastes README's code into a fresh session gets no error."""
    blocks = python_blocks()
    assert blocks, "README shows no Python example"
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_readme_four_commands_end_in_a_submission(own_files):
    """A reader with arrays and a labels CSV pastes the commands and gets a file to upload."""
    blocks = re.findall(r"```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    commands = next(block for block in blocks if "stacker import" in block).splitlines()
    assert len(commands) == 4
    assert commands[0].startswith("pip install")
    for command in commands[1:]:
        words = [sorted(map(str, Path().glob(w))) or [w] for w in shlex.split(command)]
        done = CliRunner().invoke(app, [word for some in words[1:] for word in some])
        assert done.exit_code == 0, done.output
    got = pd.read_csv("submission.csv", keep_default_na=False)
    sample = pd.read_csv("sample_submission.csv", keep_default_na=False)
    assert got.columns.tolist() == sample.columns.tolist()
    assert got["image_id"].tolist() == sample["image_id"].tolist()
    assert got["labels"].str.len().gt(0).mean() > 0.5
