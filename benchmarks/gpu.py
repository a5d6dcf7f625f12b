"""GPU throughput: extraction and training against a plain loop of the same model.

Images are written to disk as JPEG first and decoded by worker processes. Random weights: nothing
is downloaded. Writes the table into `benchmarks/gpu.md`.

    python benchmarks/gpu.py --workers 16
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnn_extract._torchvision import import_timm, import_torch
from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import Backbone, Settings, extract_backbone, scan_into_store
from cnn_extract.images import open_images
from cnn_extract.train.request import TrainRequest
from cnn_extract.train.run import train
from cnn_extract.weights import Weights
from features._console import Reporter
from features.store import FeatureStore

MODELS = ("tf_efficientnet_lite0", "convnext_base", "vit_base_patch16_224")
PAGE = Path(__file__).with_name("gpu.md")
LIMIT = 0.9
N_CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-images", type=int, default=20_000)
    parser.add_argument("--n-train", type=int, default=6_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--train-batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=n_cores())
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch = import_torch()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU; torch sees none")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder, "images"), given.n_images)
        for name in given.models:
            bare = bare_forward(name, given)
            extracted = extraction(name, images, Path(folder, f"store-{name}"), given)
            rows.append((name, "extract, bf16", bare, extracted))
            plain = bare_training(name, given)
            trained = training(name, Path(folder), given)
            rows.append((name, "training, bf16", plain, trained))
            print(rows[-2:], flush=True)
    write(rows, torch.cuda.get_device_name(), given)


def write_images(folder: Path, n_images: int) -> Path:
    """Write JPEGs of 256 pixels, smooth enough to be of a photo's size."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(n_images):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(
            folder / f"i{k:06}.jpg", quality=90
        )
    return folder


def bare_model(name: str) -> Any:
    torch = import_torch()
    return import_timm().create_model(name).cuda().to(memory_format=torch.channels_last)


def bare_forward(name: str, given: argparse.Namespace) -> float:
    """Images a second of the model on one batch that stays on the GPU."""
    torch = import_torch()
    model = bare_model(name).eval()
    model = torch.compile(model) if given.compile else model
    batch = torch.randn(given.batch_size, 3, 224, 224, device="cuda")
    batch = batch.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            model(batch)

    return given.batch_size / seconds_of(step)


def seconds_of(step: Any, warm: int = 5, n_steps: int = 30) -> float:
    torch = import_torch()
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n_steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / n_steps


def extraction(name: str, images: Path, path: Path, given: argparse.Namespace) -> float:
    """Images a second of `cnn-extract`'s backbone pass, from disk to the store."""
    source = open_images(images)
    silent = Reporter(quiet=True)
    with DecodePool(source, given.workers) as pool:
        store = FeatureStore.create(
            path, image_ids=list(source.ids), classes=["x"], chunk_images=1024
        )
        scan_into_store(store, pool, n_channels=3, batch_size=64, report=silent)
        settings = Settings(
            size=224,
            batch_size=given.batch_size,
            precision="bf16",
            device="cuda",
            compile=given.compile,
        )
        backbone = Backbone(name, name, Weights("none"))
        rate = extract_backbone(store, pool, backbone, settings, n_channels=3, report=silent)
    assert rate is not None
    return rate


def bare_training(name: str, given: argparse.Namespace) -> float:
    """Images a second of a plain training loop on one batch that stays on the GPU."""
    torch = import_torch()
    model = import_timm().create_model(name, num_classes=N_CLASSES).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters())
    batch = torch.randn(given.train_batch, 3, 224, 224, device="cuda")
    batch = batch.to(memory_format=torch.channels_last)
    targets = (torch.rand(given.train_batch, N_CLASSES, device="cuda") < 0.05).float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(batch)
        bce(logits.float(), targets).backward()
        optimiser.step()

    return given.train_batch / seconds_of(step)


RECIPE = """
folds = 2
[model]
name = "{name}"
[input]
size = 224
crop = "random-resized"
[batch]
size = {batch}
precision = "bf16"
[[stage]]
epochs = 3
"""


def training(name: str, folder: Path, given: argparse.Namespace) -> float:
    """Images a second of the last epoch of `cnn-extract train`, without its validation."""
    images = folder / "train-images"
    if not images.is_dir():
        write_images(images, given.n_train)
        rng = np.random.default_rng(1)
        lines = (
            f"i{k:06}," + " ".join(f"c{c:02}" for c in rng.choice(N_CLASSES, 3, replace=False))
            for k in range(given.n_train)
        )
        (folder / "labels.csv").write_text("image_id,labels\n" + "\n".join(lines) + "\n")
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(name=name, batch=given.train_batch))
    request = TrainRequest(
        images=images,
        labels=folder / "labels.csv",
        recipe=str(recipe),
        out=folder / f"run-{name}",
        model=f"{name}=none",
        only_folds=(0,),
        workers=given.workers,
        device="cuda",
    )
    timer = _StepTimer()
    train(replace(request), timer)
    return timer.rate


class _StepTimer(Reporter):
    """Times the progress of the training epochs alone."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.rate = 0.0

    def progress(self, label: str, total: int, unit: str = "images") -> Any:
        from contextlib import contextmanager

        @contextmanager
        def timed() -> Any:
            start = time.perf_counter()
            yield lambda n: None
            if "/" in label and "predict" not in label:
                # The last epoch's: earlier ones start workers and choose kernels.
                self.rate = total / (time.perf_counter() - start)

        return timed()


def write(rows: list[tuple[str, str, float, float]], device: str, given: Any) -> None:
    lines = [
        "# GPU throughput",
        "",
        f"{device}, {given.workers} decoding processes, batches of {given.batch_size} "
        f"(training {given.train_batch}), 224 pixels, JPEG from disk, random weights. "
        f"Limit: {LIMIT} of the bare model.",
        "",
        f"`python benchmarks/gpu.py --n-images {given.n_images} --workers {given.workers}`",
        "",
        "| model | what | bare, images/s | this, images/s | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        *(f"| {n} | {w} | {a:,.0f} | {b:,.0f} | {b / a:.2f} |" for n, w, a, b in rows),
    ]
    PAGE.write_text("\n".join(lines) + "\n")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
