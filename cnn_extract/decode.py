"""Decode images in worker processes, in order and with bounded look-ahead.

The workers import no torch: they start fast, and their memory is that of the images.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnn_extract.images import ImageError, ImageSource, Pixels
from cnn_extract.stats import image_statistics, stat_names
from cnn_extract.transforms import model_input

__all__ = [
    "DecodePool",
    "Inputs",
    "Scanned",
    "decode_inputs",
    "decode_pixels",
    "in_order",
    "n_cores",
    "scan_images",
]

Item = TypeVar("Item")
Result = TypeVar("Result")
# What a batch holds is between the task and its caller: positions of images, mostly.
Task: TypeAlias = Callable[[ImageSource, Any], Result]
# Batches on their way for each worker: one in work, one waiting.
AHEAD = 2


@dataclass(frozen=True)
class Scanned:
    """Statistics (n_images, n_stats) of some images, NaN where unreadable; why, by image.

    Examples
    --------
    >>> Scanned(np.zeros((2, 19), np.float32), errors={1: "cannot read b.png"}).stats.shape
    (2, 19)
    """

    stats: NDArray[np.float32]
    errors: dict[int, str]


@dataclass(frozen=True)
class Inputs:
    """Model inputs (n_images, size, size, n_channels), zero where unreadable; why, by image.

    Examples
    --------
    >>> Inputs(np.zeros((2, 64, 64, 3), np.uint8), errors={1: "cannot read b.png"}).images.shape
    (2, 64, 64, 3)
    """

    images: NDArray[np.uint8]
    errors: dict[int, str]


def scan_images(source: ImageSource, indices: Sequence[int], *, n_channels: int) -> Scanned:
    """Decode images and compute the statistics of their original pixels.

    Parameters
    ----------
    source : ImageSource
    indices : sequence of int
        Which images.
    n_channels : int
        What every image must have.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2), "red").save(folder + "/red.png")
    ...     scanned = scan_images(open_images(folder), [0], n_channels=3)
    >>> scanned.stats[0, list(stat_names()).index("mean_r")].item()
    255.0
    """
    stats = np.full((len(indices), len(stat_names(n_channels))), np.nan, dtype=np.float32)
    errors = {}
    for row, index in enumerate(indices):
        try:
            stats[row] = image_statistics(decode_pixels(source, index, n_channels))
        except ImageError as error:
            errors[index] = str(error)
    return Scanned(stats, errors)


def decode_inputs(
    source: ImageSource, indices: Sequence[int], *, size: int, n_channels: int
) -> Inputs:
    """Decode images, crop them if needed and resize them to a model's input.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2)).save(folder + "/black.png")
    ...     decode_inputs(open_images(folder), [0], size=8, n_channels=3).images.shape
    (1, 8, 8, 3)
    """
    images = np.zeros((len(indices), size, size, n_channels), dtype=np.uint8)
    errors = {}
    for row, index in enumerate(indices):
        try:
            images[row] = model_input(decode_pixels(source, index, n_channels), size)
        except ImageError as error:
            errors[index] = str(error)
    return Inputs(images, errors)


def decode_pixels(source: ImageSource, index: int, n_channels: int) -> Pixels:
    """Pixels of one image, which must have this number of channels; else an ImageError.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2)).save(folder + "/black.png")
    ...     decode_pixels(open_images(folder), 0, n_channels=3).shape
    (2, 4, 3)
    """
    pixels = source.decode(index)
    if pixels.shape[2] != n_channels:
        raise ImageError(
            f"image {source.names[index]} has {pixels.shape[2]} channels; the first image of "
            f"{source.path} has {n_channels}, and all must have the same"
        )
    return pixels


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    """Give ``work(item)`` in order, with at most `ahead` items on their way.

    Executor.map takes all items at once: here they wait, decoded images among them, where they are.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(in_order(pool, abs, [-3, 1, -2], ahead=2))
    [3, 1, 2]
    """
    coming = iter(items)
    waiting: deque[Future[Result]] = deque()
    for item in islice(coming, ahead):
        waiting.append(pool.submit(work, item))
    while waiting:
        done = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(coming, 1))
        yield done


def n_cores() -> int:
    """Count the cores this process may use.

    Examples
    --------
    >>> n_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class DecodePool:
    """Worker processes that decode the images of one source; 0 workers decode in this process.

    Examples
    --------
    >>> import tempfile
    >>> from functools import partial
    >>> from PIL import Image
    >>> from cnn_extract.images import open_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 2)).save(folder + "/red.png")
    ...     with DecodePool(open_images(folder), workers=0) as pool:
    ...         [len(part.stats) for part in pool.map(partial(scan_images, n_channels=3), [[0]])]
    [1]
    """

    def __init__(self, source: ImageSource, workers: int) -> None:
        self.source = source
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.workers > 0:
            # Not forked: torch's threads would not survive it.
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self.source,),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, task: Task[Result], batches: Iterable[Sequence[Any]]) -> Iterator[Result]:
        """Give ``task(source, batch)`` for each batch, in order.

        Raises
        ------
        RuntimeError
            When a worker process died.
        """
        if self._pool is None:
            yield from (task(self.source, batch) for batch in batches)
            return
        work = partial(_in_worker, task)
        try:
            yield from in_order(self._pool, work, batches, ahead=AHEAD * self.workers)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that decodes images died, most likely for want of memory; "
                "try fewer --workers or a smaller --batch-size"
            ) from error


# The images a worker process decodes; set once when it starts, so that tasks stay small.
_SOURCES: list[ImageSource] = []


def _start_worker(source: ImageSource) -> None:
    _SOURCES[:] = [source]
    # Ctrl-C goes to the parent, which ends the workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed parent cannot tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _in_worker(task: Task[Result], batch: Sequence[Any]) -> Result:
    return task(_SOURCES[0], batch)
