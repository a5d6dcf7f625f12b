"""Locks of the operating system: who writes which rows, and whose temporary files are left over.

A lock belongs to a process and ends with it, however it ends: a killed writer leaves none behind,
so no lock is ever stale. Where the system or the file system has no such locks (Windows, some
network file systems, URLs) nothing is locked; see "Writers" in ``docs/reliability.md``.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import struct
import sys
import threading
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["RowLocks", "clean_leftovers", "leased_name", "unlocked"]

logger = logging.getLogger(__name__)

# Seconds to wait for another process that changes what stands in a store: it takes milliseconds.
PATIENCE = 60.0
# What a file system says that knows no locks.
UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# A temporary file of no known owner is left over when nobody has touched it for a day.
ABANDONED_SECONDS = 86_400.0
# A file system without locks is asked this often, then the name is used all the same.
LEASE_TRIES = 3
# Byte 0 of the lock file stands for the store's structure; each array has 2**32 bytes of its own.
ARRAY_BYTES = 1 << 32


class _LockFile:
    """One open lock file of this process.

    There must be one only: whoever closes a file loses all locks of the process on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.held: Counter[tuple[int, int]] = Counter()
        self.depth = 0
        self.guard = threading.RLock()

    def lock(self, start: int, length: int) -> bool:
        """Lock a range; whether it was free. A file system without locks always is."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in UNKNOWN:
                raise
            logger.warning("%s: no locks on this file system (%s)", self.path.parent, error)
        return True

    def unlock(self, start: int, length: int) -> None:
        if fcntl is not None:
            fcntl.lockf(self.handle, fcntl.LOCK_UN, length, start)

    def holder(self, start: int, length: int) -> str:
        """Who has locked a part of a range, as far as the system tells."""
        if fcntl is None or sys.platform != "linux":
            return "another process"
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        told = struct.unpack("hhqqi4x", fcntl.fcntl(self.handle, fcntl.F_GETLK, asked))
        return f"process {told[4]}" if told[4] > 0 else "another process"


_files: dict[tuple[int, int, int], _LockFile] = {}
_opening = threading.Lock()


def _lock_file(path: Path) -> _LockFile:
    """Open a lock file, or find it open: by its place on the disk, since names change."""
    with _opening:
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which no store of ours holds. Remove it.")
        path.touch()
        place = path.stat()
        key = os.getpid(), place.st_dev, place.st_ino
        if key not in _files:
            _files[key] = _LockFile(path)
        return _files[key]


class RowLocks:
    """What a store object of this process has locked; given back when it is collected.

    Parameters
    ----------
    folder : Path or None
        The store; None for a URL, where nothing is locked.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / ".lock"
        self._mine: set[tuple[int, int]] = set()
        if self.path is not None:
            weakref.finalize(self, _give_back, self.path, self._mine)

    def take(self, name: str, start: int, stop: int, unit: int) -> None:
        """Lock rows of an array for this process until `release`.

        Parameters
        ----------
        name : str
        start, stop, unit : int
            Rows ``start`` to ``stop - 1``, in chunks of `unit`.

        Raises
        ------
        BlockingIOError
            When another process has locked some of them.
        """
        if self.path is None or start >= stop:
            return
        file, base = _lock_file(self.path), _slot(name)
        chunks = [(base, k) for k in range(start // unit, -(-stop // unit))]
        first = base + chunks[0][1]
        with file.guard:
            if not file.lock(first, len(chunks)):
                raise BlockingIOError(
                    f"images {start:,} to {stop - 1:,} of {name} in {self.path.parent} are being "
                    f"written by {file.holder(first, len(chunks))}. Wait until it has ended, or "
                    "give each process images of its own."
                )
            fresh = [chunk for chunk in chunks if chunk not in self._mine]
            file.held.update(fresh)
            self._mine.update(fresh)

    def release(self, name: str | None = None) -> None:
        """Give back the rows of an array, or everything."""
        if self.path is not None:
            base = None if name is None else _slot(name)
            _give_back(self.path, self._mine, base)

    @contextmanager
    def structure(self) -> Iterator[None]:
        """Change what stands in the store while no other process does; waits for its turn.

        Raises
        ------
        BlockingIOError
            When another process does not come to an end.
        """
        if self.path is None:
            yield
            return
        file = _lock_file(self.path)
        with file.guard:
            self._await(file)
            file.depth += 1
            try:
                yield
            finally:
                file.depth -= 1
                if not file.depth:
                    file.unlock(0, 1)

    def _await(self, file: _LockFile) -> None:
        until = time.monotonic() + PATIENCE
        while not (file.depth or file.lock(0, 1)):
            if time.monotonic() > until:
                raise BlockingIOError(
                    f"{file.path.parent} is being changed by {file.holder(0, 1)} for more than "
                    f"{PATIENCE:.0f} s. End that process, then try again."
                )
            time.sleep(0.02)


def _slot(name: str) -> int:
    """First byte of an array's rows; two names that share one would only refuse too much."""
    return (1 + (zlib.crc32(name.encode()) & 0x3FFF_FFFF)) * ARRAY_BYTES


def _give_back(path: Path, mine: set[tuple[int, int]], base: int | None = None) -> None:
    """Unlock chunks that no other store object of this process holds."""
    given = {chunk for chunk in mine if base is None or chunk[0] == base}
    if not given or not path.exists():
        mine -= given
        return
    file = _lock_file(path)
    with file.guard:
        file.held.subtract(given)
        for slot, chunk in given:
            if file.held[slot, chunk] <= 0:
                del file.held[slot, chunk]
                file.unlock(slot + chunk, 1)
        mine -= given


def _try_flock(handle: int) -> bool:
    """Lock a whole file for this process; False when another has it or nobody can know."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def leased_name(final: Path) -> Iterator[Path]:
    """Give a temporary name beside `final`, known to be in use while the block runs.

    It lies in a folder that nobody but the user may enter. What is still there afterwards is
    removed, and so is what killed processes left beside `final`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with leased_name(folder / "a.csv") as name:
    ...     _ = name.write_text("done")
    ...     _ = name.replace(folder / "a.csv")
    >>> [path.name for path in folder.iterdir()]
    ['a.csv']
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(final)
    lock, handle = _lease(final)
    private = lock.with_suffix(".partial")
    try:
        private.mkdir(mode=0o700)
        # The name stays: some writers choose the format by its suffix.
        yield private / final.name
    finally:
        remove(private)
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lease(final: Path) -> tuple[Path, int]:
    """Make and lock the file that says that a temporary name is in use."""
    for attempt in range(LEASE_TRIES):
        lock = final.with_name(f".{final.name}.{secrets.token_hex(6)}.lock")
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        locked = _try_flock(handle)
        # Between the two lines above another process may have taken it for left over.
        if locked and lock.exists():
            break
        if attempt < LEASE_TRIES - 1:
            os.close(handle)
            lock.unlink(missing_ok=True)
    return lock, handle


def clean_leftovers(final: Path) -> list[Path]:
    """Remove temporary files and folders beside `final` whose process is gone; name them."""
    if not final.parent.is_dir():
        return []
    prefix = f".{final.name}."
    removed: list[Path] = []
    beside = [path for path in final.parent.iterdir() if path.name.startswith(prefix)]
    locks = {path.name.removesuffix(".lock"): path for path in beside if path.suffix == ".lock"}
    for path in beside:
        if ".partial" not in path.name:
            continue
        owner = locks.pop(path.name.rpartition(".partial")[0], None)
        if _is_abandoned(path) if owner is None else unlocked(owner):
            removed += remove(path)
            if owner is not None:
                owner.unlink(missing_ok=True)
    for lock in locks.values():
        if unlocked(lock):
            lock.unlink(missing_ok=True)
    return removed


def unlocked(lock: Path) -> bool:
    """Whether the process that locked a file is gone."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        return _try_flock(handle)
    finally:
        os.close(handle)


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def remove(*paths: Path) -> Iterable[Path]:
    """Remove files and folders that may be gone already; give those that were there."""
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return there
