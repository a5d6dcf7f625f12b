"""Extraction against the bare model in one process: images a second, decoding included.

The bare model gets decoded, normalised batches of the same size and runs either on all cores a
batch or on one core a batch, several batches at a time; the faster of the two counts. It is timed
before and after the extraction, which runs the ordinary code: decode, crop, resize, forward pass,
store.

    python benchmarks/bench_extraction.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cnn_extract._lanes import torch_lanes
from cnn_extract._torchvision import import_timm, import_torch
from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import Backbone, Settings, extract_backbone, scan_into_store
from cnn_extract.images import open_images
from cnn_extract.weights import Weights
from features._console import Reporter
from features.store import FeatureStore

RESULTS = Path(__file__).parent / "results"
ARCHIVE = Path(__file__).parents[1] / "stacker" / "datasets" / "data" / "openclipart.zip"
LIMIT = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-images", type=int, default=1500)
    parser.add_argument("--n-bare", type=int, default=480)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    given = parser.parse_args()
    model, batches = bare_model(given)
    before = bare_rates(model, batches)
    rate, stats_rate = extraction_rate(given)
    after = bare_rates(model, batches)
    rows = {kind: max(before[kind], after[kind]) for kind in before}
    write(given, rows, rate, stats_rate)


def bare_model(given: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Make the model as timm gives it and batches as it wants them."""
    torch = import_torch()
    model = import_timm().create_model(given.model).eval()
    model = model.to(memory_format=torch.channels_last)
    size = model.pretrained_cfg["input_size"][-1]
    n_batches = given.n_bare // given.batch_size
    batch = torch.randn(given.batch_size, 3, size, size).to(memory_format=torch.channels_last)
    return model, [batch.clone() for _ in range(n_batches)]


def bare_rates(model: Any, batches: list[Any]) -> dict[str, float]:
    """Images a second of the bare forward pass, in both ways of using the cores."""
    n_images = sum(map(len, batches))
    torch = import_torch()
    torch.set_num_threads(n_cores())
    forward(model, batches[0])
    start = time.perf_counter()
    for batch in batches:
        forward(model, batch)
    together = n_images / (time.perf_counter() - start)
    with torch_lanes() as lanes:
        list(lanes.map(lambda b: forward(model, b), batches[: lanes.n_lanes]))
        start = time.perf_counter()
        run_all(lanes, model, batches)
        apart = n_images / (time.perf_counter() - start)
    return {"all cores a batch": together, "one core a batch": apart}


def run_all(lanes: ThreadPoolExecutor, model: Any, batches: list[Any]) -> None:
    list(lanes.map(lambda b: forward(model, b), batches))


def forward(model: Any, batch: Any) -> Any:
    with import_torch().inference_mode():
        return model(batch)


def extraction_rate(given: argparse.Namespace) -> tuple[float, float]:
    """Images a second of the backbone's pass, and of the pass for statistics."""
    source = open_images(ARCHIVE).take(range(given.n_images))
    silent = Reporter(quiet=True)
    with tempfile.TemporaryDirectory() as folder, DecodePool(source, n_cores()) as pool:
        store = FeatureStore.create(
            Path(folder, "store"), image_ids=list(source.ids), classes=["x"], chunk_images=256
        )
        start = time.perf_counter()
        scan_into_store(store, pool, n_channels=3, report=silent)
        stats = given.n_images / (time.perf_counter() - start)
        backbone = Backbone(given.model, given.model, Weights("none"))
        settings = Settings(batch_size=given.batch_size)
        rate = extract_backbone(store, pool, backbone, settings, n_channels=3, report=silent)
        assert rate is not None
        assert np.isfinite(store.embeddings(given.model)).all()
    return rate, stats


def write(
    given: argparse.Namespace, rows: dict[str, float], rate: float, stats_rate: float
) -> None:
    bare = max(rows.values())
    lines = [
        "## Extraction",
        "",
        f"{given.model}, 224 pixels, batches of {given.batch_size}, {n_cores()} cores, float32; "
        f"{given.n_images:,} openclipart images out of the zip. Limit: {LIMIT} of the faster bare "
        f"model, decoding included.",
        "",
        "|  | images/s | of the bare model |",
        "| --- | ---: | ---: |",
        *(
            f"| bare model, {kind} | {value:.1f} | {value / bare:.2f} |"
            for kind, value in rows.items()
        ),
        f"| extraction: decode, crop, resize, forward, store | {rate:.1f} | {rate / bare:.2f} |",
        f"| pass for statistics, once for all models | {stats_rate:.1f} |  |",
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "extraction.md").write_text(text)
    print(text)
    print("PASS" if rate >= LIMIT * bare else "FAIL")


if __name__ == "__main__":
    main()
