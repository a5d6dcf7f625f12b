"""Shared by the benchmarks: best-of timing, workers that report their peak memory, sections.

A benchmark writes its tables as a section, `benchmarks/results/<name>.md`; `assemble.py` joins
the sections to `benchmarks/results.md`.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def best_of(work: Callable[[], object], repeats: int = 5) -> float:
    """Shortest time of several runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_rss() -> float:
    """Largest resident memory that this process ever had, in GB (10**9 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if platform.system() == "Darwin" else 1e6)


def rss() -> float:
    """Resident memory now, in GB; the peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_rss()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


class PeakWithin:
    """Largest resident memory inside a with block, in GB, looked at every 20 ms."""

    def __enter__(self) -> "PeakWithin":
        self.gb, self.running = rss(), True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.gb = max(self.gb, rss())
            time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()
        self.gb = max(self.gb, rss())


def in_own_process(script: str, *arguments: object) -> dict[str, Any]:
    """Run `script arguments` in a process of its own; its last line is JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table; numbers stand to the right."""
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def write_section(name: str, text: str) -> None:
    """Keep a benchmark's result for `assemble.py`, and print it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n")
    print(text, flush=True)
