"""One timed fit by scikit-learn, run by the interpreter of scikit-learn's own environment.

    python clustering_scikit.py DATA.npy CASE SEED

Prints one line of JSON: the seconds of the fit, and what was fitted.
"""

import importlib
import json
import sys
import time

import numpy as np


def main() -> None:
    """Fit and print."""
    path, case, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    x = np.load(path)
    if case == "kmeans":
        model = importlib.import_module("sklearn.cluster").KMeans(5, n_init=1, random_state=seed)
    else:
        kind = {"diagonal": "diag", "full": "full"}[case]
        model = importlib.import_module("sklearn.mixture").GaussianMixture(
            5, covariance_type=kind, random_state=seed, max_iter=20, init_params="k-means++"
        )
    start = time.perf_counter()
    model.fit(x)
    found = {"seconds": time.perf_counter() - start}
    if case == "kmeans":
        found["mean"] = model.cluster_centers_.tolist()
    else:
        found["weight"], found["mean"] = model.weights_.tolist(), model.means_.tolist()
        found["covariance"] = model.covariances_.tolist()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
