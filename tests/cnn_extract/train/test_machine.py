"""Devices and precisions that are there, and those that are not."""

import pytest
import torch

from cnn_extract.train.machine import make_accelerator, sum_over_ranks


def test_another_precision_may_follow_in_the_same_process():
    """A second run in one process keeps the first one's precision, or fails."""
    for precision in ("no", "bf16", "no"):
        assert make_accelerator("cpu", precision).mixed_precision == precision


def test_one_process_sums_alone():
    """A single process waits for others."""
    values = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(make_accelerator("cpu", "no"), values) is values


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "no", "device must be one of auto, cpu, cuda; got 'tpu'"),
        ("cpu", "fp16", "fp16 training needs a GPU; use --set batch.precision=bf16"),
    ],
)
def test_what_is_not_there_is_refused(device, precision, message):
    """Training fails hours later, or runs on something else."""
    with pytest.raises(ValueError, match=message):
        make_accelerator(device, precision)


def test_a_missing_gpu_is_named(monkeypatch):
    """`--device cuda` without a GPU trains on the CPU for a week."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU; use --device cpu"):
        make_accelerator("cuda", "no")
