"""Checkpoints: nothing is lost, nothing is half written."""

import json

import numpy as np
import pytest
import torch

from cnn_extract.train.checkpoint import (
    Progress,
    load_progress,
    read_model,
    save_model,
    save_progress,
)


def test_progress_comes_back_as_it_was(tmp_path):
    """A resumed run lacks the optimiser's momentum, its step numbers or the losses."""
    layer = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    progress = Progress(
        stage=1,
        epoch=2,
        weights=layer.state_dict(),
        ema=layer.state_dict(),
        ema_steps=5,
        optimiser=optimiser.state_dict(),
        schedule={"best": 0.5},
        losses=np.array([0.5, np.nan], np.float32),
        log=[{"epoch": 1, "val_loss": 0.25}],
    )
    save_progress(tmp_path, progress)
    found = load_progress(tmp_path)
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(found.optimiser)
    for key, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(other.state_dict()["state"][key][name], value)
    assert (found.stage, found.epoch, found.ema_steps) == (1, 2, 5)
    assert torch.equal(found.weights["bias"], layer.bias)
    assert found.schedule == {"best": 0.5}
    assert found.log == progress.log
    np.testing.assert_array_equal(found.losses, progress.losses)


def test_a_model_is_complete_only_with_its_json(tmp_path):
    """A kill between the two files leaves a network that counts as trained."""
    assert read_model(tmp_path) is None
    save_progress(tmp_path, Progress())
    save_model(tmp_path, {"weight": torch.ones(2)}, {"fold": 3})
    state, about = read_model(tmp_path)
    assert about == {"fold": 3}
    assert state["weight"].tolist() == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    (tmp_path / "model.json").unlink()
    assert read_model(tmp_path) is None


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    """A full disk destroys the last checkpoint."""
    import safetensors.torch

    save_progress(tmp_path, Progress(epoch=1))

    def fail(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_progress(tmp_path, Progress(epoch=2))
    assert load_progress(tmp_path).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_the_json_is_readable_by_people(tmp_path):
    """What made a network can only be read by this program."""
    save_model(tmp_path, {"w": torch.ones(1)}, {"timm_name": "x", "classes": ["a"]})
    text = (tmp_path / "model.json").read_text()
    about = json.loads(text)
    assert len(about.pop("checksum")) == 64
    assert about == {"timm_name": "x", "classes": ["a"]}
    assert text.count("\n") > 3
