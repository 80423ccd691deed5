"""Settings for the whole suite, made before anything imports numpy."""

import os

# References are small products: on a shared machine a BLAS team spins more than it computes.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
