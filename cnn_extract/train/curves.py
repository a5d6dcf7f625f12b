"""Curves of a training run: a line an epoch, as CSV and, where wanted, for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_extract.train.checkpoint import write_text
from features._console import Reporter

__all__ = ["Curves"]


@dataclass(frozen=True)
class Curves:
    """Writes the log of a network after every epoch.

    Parameters
    ----------
    report : Reporter
        Gets a line an epoch.
    tensorboard : Path, optional
        Folder for the event files of this network.

    Examples
    --------
    >>> import tempfile
    >>> epoch = {"stage": "head", "epoch": 1, "train_loss": 2.0, "val_loss": 2.5, "val_f2": 0.5}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Curves(Reporter(quiet=True)).write(Path(folder), [epoch | {"seconds": 1.0}])
    ...     Path(folder, "log.csv").read_text().splitlines()[0]
    'stage,epoch,train_loss,val_loss,val_f2,seconds'
    """

    report: Reporter
    tensorboard: Path | None = None

    def write(self, folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
        """Write ``log.csv``, all epochs so far, and tell of the last one."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(log[-1]))
        writer.writeheader()
        writer.writerows(log)
        write_text(folder / "log.csv", text.getvalue())
        last = log[-1]
        self.report.log(
            f"{folder.name} {last['stage']} epoch {last['epoch']}: loss {last['train_loss']:.4f}, "
            f"held out {last['val_loss']:.4f}, F2 {last['val_f2']:.4f}, {last['seconds']:.1f} s"
        )
        if self.tensorboard is not None:
            _write_events(self.tensorboard, log)


def _write_events(folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "--tensorboard needs the package tensorboard: pip install 'pairstack[tensorboard]'"
        ) from error
    writer: Any = SummaryWriter(str(folder))
    for name, value in log[-1].items():
        if isinstance(value, (int, float)) and name != "epoch":
            writer.add_scalar(name, value, len(log))
    writer.close()
