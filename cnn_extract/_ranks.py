"""Several processes that fill one store: each takes chunks of its own.

Started by ``accelerate launch`` or torchrun, which tell each process its rank.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Ranks", "this_rank"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """One process among several: its number, how many there are, its number on its machine.

    Examples
    --------
    >>> Ranks(1, 3).share(["a", "b", "c", "d", "e"])
    ['b', 'e']
    """

    rank: int = 0
    n_ranks: int = 1
    local: int = 0
    state: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process does what is to be done once."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every `n_ranks`-th item, beginning with this process's number."""
        return list(items[self.rank :: self.n_ranks])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()


def this_rank(device: str) -> Ranks:
    """Find out which process this is; the only one, where none are told of others.

    Parameters
    ----------
    device : {"cpu", "cuda"}
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    from accelerate import PartialState

    state: Any = PartialState(cpu=device == "cpu")
    return Ranks(state.process_index, state.num_processes, state.local_process_index, state)
