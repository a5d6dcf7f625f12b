"""Threads that each run torch on one core.

One batch on one core beats one batch on all cores: no core waits for another after every layer,
which costs most where other programs share the machine, and the numbers do not depend on how many
cores there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from cnn_extract._torchvision import import_torch
from cnn_extract.decode import n_cores

__all__ = ["Lanes", "torch_lanes"]

# Each lane holds the activations of a batch; beyond this, lanes get several cores instead.
MOST_LANES = 16


class Lanes(ThreadPoolExecutor):
    """A thread pool that knows how many threads it has."""

    def __init__(self, n_lanes: int) -> None:
        super().__init__(n_lanes, thread_name_prefix="torch-lane")
        self.n_lanes = n_lanes


@contextmanager
def torch_lanes(n_lanes: int | None = None) -> Iterator[Lanes]:
    """Give `n_lanes` threads, by default one a core; torch's setting is put back at the end.

    A new thread takes torch's number of threads as it is when it first computes.
    """
    torch = import_torch()
    before = torch.get_num_threads()
    n_lanes = n_lanes or min(n_cores(), MOST_LANES)
    torch.set_num_threads(max(1, n_cores() // n_lanes))
    lanes = Lanes(n_lanes)
    try:
        yield lanes
    finally:
        lanes.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
