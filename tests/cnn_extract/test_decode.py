import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cnn_extract.decode import DecodePool, decode_inputs, in_order, scan_images
from cnn_extract.images import open_images

BATCHES = [range(0, 5), range(5, 8), range(8, 12)]


def die(source, indices):
    os._exit(1)


def test_workers_give_what_this_process_gives_in_order(make_set):
    """Batches finish in any order; rows must not."""
    source = open_images(make_set(12)[0])
    for task in (
        partial(scan_images, n_channels=3),
        partial(decode_inputs, size=16, n_channels=3),
    ):
        with DecodePool(source, 0) as here, DecodePool(source, 2) as there:
            pairs = list(zip(here.map(task, BATCHES), there.map(task, BATCHES), strict=True))
        for one, other in pairs:
            name = "stats" if hasattr(one, "stats") else "images"
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_unreadable_image_never_shifts_a_row(make_set):
    """The row of an unreadable image stays, and its neighbours are the right ones."""
    folder, _, _ = make_set(6)
    source = open_images(folder)
    whole = scan_images(source, range(6), n_channels=3).stats
    (folder / "i002.png").write_bytes(b"broken")
    part = scan_images(source, range(6), n_channels=3)
    assert list(part.errors) == [2]
    assert "i002.png" in part.errors[2]
    assert np.isnan(part.stats[2]).all()
    np.testing.assert_array_equal(np.delete(part.stats, 2, 0), np.delete(whole, 2, 0))
    inputs = decode_inputs(source, range(6), size=8, n_channels=3)
    assert list(inputs.errors) == [2]
    assert not inputs.images[2].any()


def test_other_number_of_channels_is_an_error(make_set):
    """A grey-alpha array among colour images cannot share their statistics."""
    folder, _, _ = make_set(2)
    np.save(folder / "i001x.npy", np.zeros((4, 4, 6), np.uint8))
    part = scan_images(open_images(folder), range(3), n_channels=3)
    assert "i001x.npy has 6 channels" in part.errors[2]


def test_dead_worker_says_so(make_set):
    """A worker killed for want of memory must not hang the run."""
    with (
        DecodePool(open_images(make_set(4)[0]), 1) as pool,
        pytest.raises(RuntimeError, match="fewer --workers"),
    ):
        list(pool.map(die, BATCHES[:1]))


def test_workers_end_with_a_killed_parent(make_set, tmp_path):
    """A SIGKILLed run must not leave processes behind."""
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys\n"
        "from cnn_extract.decode import DecodePool, scan_images\n"
        "from cnn_extract.images import open_images\n"
        "from functools import partial\n"
        "if __name__ == '__main__':\n"
        "    with DecodePool(open_images(sys.argv[1]), 2) as pool:\n"
        "        list(pool.map(partial(scan_images, n_channels=3), [range(4)]))\n"
        "        print(*pool._pool._processes, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, str(script), str(make_set(4)[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) > 0
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)


def is_running(pid):
    try:
        os.kill(pid, 0)
        with Path(f"/proc/{pid}/stat").open() as stat:  # a zombie that nobody reaps is no process
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_only_a_few_items_are_on_their_way():
    """Taking all batches at once would decode the whole set into memory."""
    from concurrent.futures import ThreadPoolExecutor

    taken = []

    def items():
        for k in range(20):
            taken.append(k)
            yield k

    with ThreadPoolExecutor(2) as pool:
        for k, value in enumerate(in_order(pool, lambda x: x * x, items(), ahead=3)):
            assert value == k * k
            assert len(taken) <= k + 4
    assert len(taken) == 20
