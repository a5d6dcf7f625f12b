"""Speed and memory of the feature engine, each against a limit or a peer in the same run.

    python benchmarks/bench_features.py                       # all parts: about 15 minutes, 8 GB
    python benchmarks/bench_features.py --parts combinations,neighbours
    python benchmarks/bench_features.py --scale 0.1           # a tenth of the images

Parts: combinations, neighbours, imet, wide. Each writes `benchmarks/results/
features-<part>.md`. Parts that measure memory run in a process of their own.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pandas as pd
import synthetic
from measure import PeakWithin, best_of, in_own_process, peak_rss, rss, table, write_section
from numba import njit, prange

from features.assemble import PairFeatures
from features.blocks.neighbours import nearest_images
from features.blocks.spaces import Codes, encode, fit_space
from features.combinations import OPERATORS, combine, model_subsets, operator_mask
from features.numeric import logit
from features.parquet import label_at
from features.schema import Stack
from stacker.boosters import LightGBMBooster, Rows

IMET_IMAGES = 109_237
# The starred blocks of the plan, whatever the defaults have become: the widest table.
STARRED = (
    *("probabilities", "logits", "combinations", "agreement", "ranks", "image_context"),
    *("class_similarity", "class_prior", "cooccurrence", "neighbours"),
)
IMET_BLOCKS = (*STARRED, "image_stats")
WIDE_BLOCKS = (*STARRED, "hierarchy")
IMET_CANDIDATES = {"culture": 20, "tag": 30}
# What a row costs beside its bins: label, base, initial score, weight, image, class.
ROW_BYTES = 4 + 4 + 8 + 4 + 4 + 4


def combinations(scale: float) -> str:
    n_rows, n_models = int(500_000 * scale), 10
    probs = np.random.default_rng(0).random((n_rows, n_models), dtype=np.float32)
    subsets, mask = model_subsets(n_models), operator_mask(OPERATORS)
    out = np.zeros((n_rows, 4 * len(subsets)), dtype=np.float32)
    source = np.ones_like(out)
    work: dict[str, Callable[[], object]] = {
        "combination kernel": lambda: combine(probs, subsets, mask, out),
        "numpy.copyto": lambda: np.copyto(out, source),
        "parallel numba copy": lambda: copy(source, out),
        "parallel numba fill (write only)": lambda: fill(out),
    }
    for one in work.values():
        one()
    rate = {name: out.nbytes / best_of(one, 9) / 1e9 for name, one in work.items()}
    some = max(n_rows // 4, 1)
    frame_seconds = best_of(lambda: pandas_build(probs[:some], subsets), 2) * n_rows / some
    rate["column-wise pandas build"] = out.nbytes / frame_seconds / 1e9
    own = rate["combination kernel"]
    rows = [[name, f"{r:.2f}", f"{own / r:.2f}"] for name, r in rate.items()]
    return (
        f"## Combination kernel\n\n{n_rows:,} rows, {n_models} models, {out.shape[1]} columns "
        f"({out.nbytes / 1e6:.0f} MB), {numba.get_num_threads()} threads, best of 9.\n\n"
        + table(["", "GB/s written", "kernel / this"], rows)
    )


@njit(parallel=True)
def copy(source, out):
    a, b = source.reshape(-1), out.reshape(-1)
    for i in prange(len(b)):
        b[i] = a[i]


@njit(parallel=True)
def fill(out):
    b = out.reshape(-1)
    for i in prange(len(b)):
        b[i] = 1.5


def pandas_build(probs: np.ndarray, subsets: np.ndarray) -> pd.DataFrame:
    p = pd.DataFrame(probs, columns=[f"m{m}" for m in range(probs.shape[1])])
    frame = pd.DataFrame(index=p.index)
    with pd.option_context("mode.performance_warnings", False):
        for i, j in subsets:
            a, b = p[f"m{i}"], p[f"m{j}"]
            frame[f"sum:{i}+{j}"] = a + b
            frame[f"diff:{i}-{j}"] = a - b
            frame[f"prod:{i}*{j}"] = a * b
            frame[f"ratio:{i}/{j}"] = a / (b + np.float32(1e-6))
    return frame


def stream_to_lightgbm(n_images: int) -> dict[str, object]:
    """Worker: all default blocks of iMet's shape into a LightGBM Dataset; times and memory."""
    warm = synthetic.imet(300)
    first = PairFeatures(blocks=IMET_BLOCKS, candidates=5)
    list(first.fit(warm.stack, warm.labels, warm.fold).batches(warm.stack))
    given = synthetic.imet(n_images)
    inputs = rss()
    with PeakWithin() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        features = PairFeatures(blocks=IMET_BLOCKS, candidates=IMET_CANDIDATES)
        features.fit(given.stack, given.labels, given.fold)
        fitted = time.perf_counter()
        rows = rows_of(features, given)
        data = LightGBMBooster({}, None, 0).bin(rows)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    n_rows, n_columns = len(rows), len(features.columns_)
    binned = n_rows * (n_columns + ROW_BYTES) / 1e9
    assert data.num_data() == n_rows
    return {
        "n_images": n_images,
        "n_rows": n_rows,
        "n_columns": n_columns,
        "seconds": seconds,
        "cpu": cpu,
        "fit_seconds": fitted - start,
        "blocks": features.seconds_,
        "columns": features.n_columns_,
        "recall": features.overall_recall_,
        "peak": peak_rss(),
        "inputs": inputs,
        "binned": binned,
        "working": peak.gb - inputs - binned,
        "dense": n_rows * n_columns * 4 / 1e9,
    }


def rows_of(features: PairFeatures, given: synthetic.Problem) -> Rows:
    found = features.all_candidates(given.stack)
    image, cls = found.row_image, found.classes
    label = label_at(given.labels, image.astype(np.int64), cls).astype(np.float32)
    base = np.zeros(len(found), dtype=np.float32)
    for values in given.stack.probabilities.values():
        base += logit(values[image, cls]) / np.float32(len(given.stack.models))
    folds = {"fold": given.fold, "feature_fold": given.fold}
    return Rows(
        features, given.stack, **folds, image=image, cls=cls, label=label, base=base, start=base
    )


def imet(scale: float) -> str:
    sizes = [int(n * scale) for n in (10_000, 30_000, IMET_IMAGES)]
    runs = [in_own_process(__file__, "--worker", "imet", "--images", n) for n in sizes]
    return f"{largest(runs[-1])}\n\n{growth(runs)}"


def largest(one: dict[str, Any]) -> str:
    n_rows, seen = one["n_rows"], one["blocks"]
    rows = []
    for name, n_columns in one["columns"].items():
        fill_seconds = seen[f"{name}/fill"]
        rate = f"{n_rows / fill_seconds:,.0f}"
        rows.append([name, n_columns, f"{seen[f'{name}/fit']:.1f}", f"{fill_seconds:.1f}", rate])
    told = sum(seen.values())
    rows.append(["candidates, spaces, binning", "", "", f"{one['seconds'] - told:.1f}", ""])
    rate = f"{n_rows / one['seconds']:,.0f}"
    rows.append(["all", one["n_columns"], "", f"{one['seconds']:.1f}", rate])
    return (
        f"## iMet's shape, streamed to a LightGBM Dataset\n\n{one['n_images']:,} images x 1,103 "
        f"classes, 10 models in float16, 20 + 30 candidates: {n_rows:,} rows x "
        f"{one['n_columns']} columns (candidate recall {one['recall']:.3f}). Peak resident memory "
        f"{one['peak']:.2f} GB (limit 8), of which inputs {one['inputs']:.2f}, binned data "
        f"{one['binned']:.2f}, working memory {one['working']:.2f}. The dense float32 table would "
        f"be {one['dense']:.2f} GB by itself. rows s includes the sample that bin boundaries are "
        f"read from.\n\n" + table(["block", "columns", "fit s", "rows s", "rows/s"], rows)
    )


def growth(runs: list[dict[str, Any]]) -> str:
    first = runs[0]["cpu"] / runs[0]["n_images"]
    rows = [
        [
            f"{r['n_images']:,}",
            f"{r['seconds']:.1f}",
            f"{r['cpu']:.1f}",
            f"{1e3 * r['cpu'] / r['n_images']:.2f}",
            f"{r['cpu'] / r['n_images'] / first:.2f}",
            f"{r['binned']:.2f}",
            f"{r['working']:.2f}",
            f"{r['peak']:.2f}",
        ]
        for r in runs
    ]
    head = [
        "images",
        "seconds",
        "CPU seconds",
        "CPU ms an image",
        "of the first",
        "binned GB",
        "working GB",
        "peak GB",
    ]
    return (
        "## Growth\n\nThe same work for more images. Working memory is the peak less the inputs "
        "and the binned data.\n\n" + table(head, rows)
    )


def stream_wide(n_images: int) -> dict[str, object]:
    """Worker: 32,000 classes, top-200 predictions; every block that applies."""
    warm = synthetic.wide(300, 2000)
    first = PairFeatures(blocks=WIDE_BLOCKS, candidates=5)
    list(first.fit(warm.stack, warm.labels, warm.fold).batches(warm.stack))
    given = synthetic.wide(n_images, 32_000)
    inputs, start = rss(), time.perf_counter()
    features = PairFeatures(blocks=WIDE_BLOCKS, candidates=50)
    features.fit(given.stack, given.labels, given.fold)
    fitted, n_rows = time.perf_counter(), 0
    for batch in features.batches(given.stack, given.fold):
        n_rows += len(batch.features)
    return {
        "n_rows": n_rows,
        "n_columns": len(features.columns_),
        "blocks": features.seconds_,
        "columns": features.n_columns_,
        "fit_seconds": fitted - start,
        "seconds": time.perf_counter() - start,
        "inputs": inputs,
        "peak": peak_rss(),
    }


def wide(scale: float) -> str:
    n_images = int(100_000 * scale)
    one = in_own_process(__file__, "--worker", "wide", "--images", n_images)
    seen = one["blocks"]
    rows = [
        [name, n, f"{seen[f'{name}/fit']:.1f}", f"{seen[f'{name}/fill']:.1f}"]
        for name, n in one["columns"].items()
    ]
    told = sum(seen.values())
    rows.append(["blend, candidates, spaces", "", "", f"{one['seconds'] - told:.1f}"])
    rows.append(["all", one["n_columns"], "", f"{one['seconds']:.1f}"])
    return (
        f"## 32,000 classes\n\n{n_images:,} images, three models' top 200 as CSR, 50 candidates: "
        f"{one['n_rows']:,} rows x {one['n_columns']} columns. Peak resident memory "
        f"{one['peak']:.2f} GB (limit 12), inputs {one['inputs']:.2f}.\n\n"
        + table(["block", "columns", "fit s", "rows s"], rows)
    )


def neighbours(scale: float) -> str:
    n_images, k, n_asked = int(100_000 * scale), 50, 4000
    vectors = synthetic.embeddings(n_images)
    start = time.perf_counter()
    projection = fit_space(vectors[:20_000].astype(np.float32))
    parts = [
        encode(vectors[i : i + 4096].astype(np.float32), projection)
        for i in range(0, n_images, 4096)
    ]
    codes = Codes(
        np.concatenate([p.values for p in parts]), np.concatenate([p.norms for p in parts])
    )
    encoded = time.perf_counter() - start
    asked = np.unique(np.linspace(0, n_images - 1, n_asked).astype(np.int64))
    found = {}
    for name, exact_up_to in (("exact", n_images), ("cells", 0)):
        search = Search(codes, exact_up_to)
        search.run(asked[:10], k)
        found[name] = search.run(asked, k)
    truth = found["exact"][0]
    rows = []
    for name, (ids, build, search) in {**found, **library(codes, asked, k)}.items():
        scaled = search * n_images / len(asked)
        recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(ids, truth, strict=True)])
        rows.append(
            [name, f"{build:.1f}", f"{scaled:.1f}", f"{build + scaled:.1f}", f"{recall:.3f}"]
        )
    head = ["search", "build s", "all queries s", "both s", "recall"]
    return (
        f"## Nearest neighbours\n\n{n_images:,} x {vectors.shape[1]:,} float16, k = {k}; "
        f"{len(asked):,} queries timed and scaled to all. Encoding to 256 int8 numbers: "
        f"{encoded:.1f} s, on top of each line; all search the same codes.\n\n" + table(head, rows)
    )


class Search:
    """Our own search in one space, on training images of one fold that queries are not in."""

    def __init__(self, codes: Codes, exact_up_to: int) -> None:
        from features.blocks._cells import fit_cells

        start = time.perf_counter()
        n_images = len(codes.values)
        self.state = {"spaces": ["x"], "fold": np.zeros(n_images, np.int64)}
        self.state |= {"x/values": codes.values, "x/norms": codes.norms}
        if n_images > exact_up_to:
            self.state |= {f"x/{key}": value for key, value in fit_cells(codes).items()}
        self.build, self.codes = time.perf_counter() - start, codes

    def run(self, asked: np.ndarray, k: int) -> tuple[np.ndarray, float, float]:
        """Neighbours of some images, seconds to build, seconds to search."""
        start, parts = time.perf_counter(), []
        for i in range(0, len(asked), 1310):
            some = asked[i : i + 1310]
            query = Queries(Codes(self.codes.values[some], self.codes.norms[some]))
            parts.append(nearest_images(query, self.state, k)[0][0])  # type: ignore[arg-type]
        return np.concatenate(parts), self.build, time.perf_counter() - start


class Queries:
    """As much of a `Batch` as the search reads: new images, in one space."""

    def __init__(self, codes: Codes) -> None:
        self.own, self.entry = codes, np.ones(len(codes.values), np.int64)
        self.stack = Stack({"m": np.zeros((len(codes.values), 1))})

    def codes(self, name: str) -> Codes:
        """As of a batch."""
        return self.own


def library(codes: Codes, asked: np.ndarray, k: int) -> dict[str, tuple[np.ndarray, float, float]]:
    """Time usearch alone: an HNSW graph over the same int8 codes."""
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch is not installed: its lines are left out")
        return {}
    threads, found = numba.get_num_threads(), {}
    graph = Index(ndim=256, metric="cos", dtype="i8", connectivity=16, expansion_add=64)
    start = time.perf_counter()
    graph.add(np.arange(len(codes.values)), codes.values, threads=threads)
    build = time.perf_counter() - start
    for expansion in (64, 128, 256):
        graph.expansion_search = expansion
        start = time.perf_counter()
        ids = graph.search(codes.values[asked], k, threads=threads).keys.astype(np.int64)
        found[f"usearch, expansion {expansion}"] = (ids, build, time.perf_counter() - start)
    return found


PARTS = {f.__name__: f for f in (combinations, neighbours, imet, wide)}
WORKERS = {"imet": stream_to_lightgbm, "wide": stream_wide}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images")
    parser.add_argument("--worker", choices=list(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(WORKERS[options.worker](options.images)))
        return
    for name in options.parts.split(","):
        write_section(f"features-{name}", PARTS[name](options.scale))


if __name__ == "__main__":
    main()
