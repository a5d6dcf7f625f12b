"""Fit on the cores of this machine: one single-thread worker a core, rows divided among them.

python docs/dask/local.py store/ model/
"""

import sys

from distributed import Client, LocalCluster

from features import FeatureStore
from stacker import PairStacker


def main(store: str, out: str) -> None:
    """Start workers, fit, save."""
    cluster = LocalCluster(threads_per_worker=1, memory_limit="auto")
    with cluster, Client(cluster):
        model = PairStacker("xgboost", cv="store", dask="current", random_state=0, verbose=1)
        model.fit(FeatureStore.open(store)).save(out)


# Worker processes import this file.
if __name__ == "__main__":
    main(*sys.argv[1:])
