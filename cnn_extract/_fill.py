"""What a run writes into its store: statistics, embeddings and logits, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnn_extract._ranks import Ranks
from cnn_extract.decode import DecodePool, n_cores
from cnn_extract.extract import (
    Backbone,
    Settings,
    count_channels,
    extract_backbone,
    scan_into_store,
)
from cnn_extract.heads import write_head
from cnn_extract.images import ImageSource
from features._console import Reporter

if TYPE_CHECKING:
    from cnn_extract.run import Request, Summary
    from features.store import FeatureStore

__all__ = ["fit_heads", "has_statistics", "read_images"]


def has_statistics(store: FeatureStore) -> bool:
    return "image_stats" in store.array_names and store.is_complete("image_stats")


def read_images(
    request: Request,
    store: FeatureStore,
    source: ImageSource,
    backbones: Sequence[Backbone],
    report: Reporter,
    ranks: Ranks,
    summary: Summary,
) -> None:
    """Go through the images: once for their statistics, once for each backbone."""
    settings = Settings(
        size=request.size,
        tta=request.tta,
        batch_size=request.batch_size,
        precision=request.precision,
        device=request.device,
        compile=request.compile,
    )
    n_channels = count_channels(source)
    workers = n_cores() if request.workers is None else request.workers
    with DecodePool(source, workers) as pool:
        if has_statistics(store):
            summary.already.append("image_stats")
        elif ranks.is_main:
            scan_into_store(
                store,
                pool,
                n_channels=n_channels,
                on_error=request.on_error,
                batch_size=request.batch_size,
                report=report,
            )
        ranks.wait()
        for backbone in backbones:
            rate = extract_backbone(
                store, pool, backbone, settings, n_channels=n_channels, report=report, ranks=ranks
            )
            if rate is None:
                summary.already.append(backbone.key)
            else:
                summary.rates[backbone.key] = rate


def fit_heads(
    request: Request,
    store: FeatureStore,
    backbones: Sequence[Backbone],
    report: Reporter,
    summary: Summary,
) -> None:
    """Fit each head on each backbone's embeddings, which are complete by now."""
    for backbone in backbones:
        for head in request.heads:
            name = f"{backbone.key}.{head}"
            if not write_head(store, backbone.key, head, seed=request.seed, report=report):
                summary.already.append(name)
            summary.models.append(name)
