"""A Dask cluster whose workers were started by hand, each in a working folder of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

distributed = pytest.importorskip("distributed")


OPTIONS = ["--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]


class Cluster:
    """A scheduler in this process and workers that are processes elsewhere."""

    def __init__(self, folders):
        self.folders = folders
        self.scheduler = distributed.LocalCluster(
            n_workers=0, dashboard_address=None, silence_logs=50
        )
        self.address = self.scheduler.scheduler_address
        self.client = distributed.Client(self.address, set_as_default=False)
        self.workers = []

    def start(self, n):
        """Start workers without a nanny: one that is killed stays away."""
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        begun = [
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *OPTIONS],
                cwd=self.folders.mktemp("worker"),
                env=os.environ | dict.fromkeys(threads, "1"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(n)
        ]
        self.workers += begun
        alive = [worker for worker in self.workers if worker.poll() is None]
        self.client.wait_for_workers(len(alive), timeout=120)
        return begun

    def kill(self, worker):
        """Kill a worker as a power cut would."""
        worker.send_signal(signal.SIGKILL)
        worker.wait()

    def wait_until(self, true, seconds=120):
        """Wait for a condition, or fail."""
        stop = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < stop, "it never came true"
            time.sleep(0.02)

    def close(self):
        self.client.close()
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.scheduler.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two single-thread workers."""
    made = Cluster(tmp_path_factory)
    made.start(2)
    yield made
    made.close()
