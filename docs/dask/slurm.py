"""Fit on a Slurm cluster through dask-jobqueue (`pip install dask-jobqueue`).

python docs/dask/slurm.py /shared/store /shared/model

The store must lie where every node sees it under this name, or be a URL such as s3://bucket/store.
"""

import sys

from dask_jobqueue import SLURMCluster
from distributed import Client

from features import FeatureStore
from stacker import PairStacker


def main(store: str, out: str) -> None:
    """Ask for jobs, wait for the first workers, fit, save."""
    cluster = SLURMCluster(
        queue="cpu",
        cores=8,
        processes=1,
        memory="32GB",
        walltime="04:00:00",
        # Short files of lost and spilled data stay off the shared disk.
        local_directory="/tmp",
    )
    cluster.scale(jobs=8)
    with cluster, Client(cluster) as client:
        client.wait_for_workers(8)
        model = PairStacker("xgboost", cv="store", dask="current", random_state=0, verbose=1)
        model.fit(FeatureStore.open(store)).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
