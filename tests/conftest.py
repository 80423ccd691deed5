"""Settings for the whole suite, made before anything imports numpy."""

import os
import signal

# References are small products: on a shared machine a BLAS team spins more than it computes.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell that starts the suite in the background has it ignore Ctrl-C, and every process started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
