"""BLAS on one thread: where its own threads gain nothing, or change a result's last bit."""

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["blas_on_one_thread"]


def blas_on_one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to the calling thread for the length of a with block."""
    return _blas().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
