"""Settings for the whole suite, made before anything imports numpy; the models that tests of the command line run."""

import os
import signal
from pathlib import Path

import pytest

# References are small products: on a shared machine a BLAS team spins more than it computes.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell that starts the suite in the background has it ignore Ctrl-C, and every process started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import cuda_stand_in  # noqa: E402
from cli_player import make_player  # noqa: E402 (imports numpy)


@pytest.fixture(scope="session")
def player(tmp_path_factory) -> Path:
    return make_player(tmp_path_factory.mktemp("models") / "player")


@pytest.fixture(scope="session")
def chatty(tmp_path_factory) -> Path:
    return make_player(tmp_path_factory.mktemp("models") / "chatty", chat=True)


@pytest.fixture(scope="session")
def endless(tmp_path_factory) -> Path:
    """Writes for many seconds: what can be interrupted or watched."""
    return make_player(tmp_path_factory.mktemp("models") / "endless", context=60_000, loop=True)


@pytest.fixture(scope="session")
def vague(tmp_path_factory) -> Path:
    """Sampling from it gives different texts for different seeds."""
    return make_player(tmp_path_factory.mktemp("models") / "vague", sharpness=0.2)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> tuple[Path, Path]:
    """(folder of a driver library, plugin): CUDA without a GPU, compiled once for all tests."""
    folder = tmp_path_factory.mktemp("plugin")
    return cuda_stand_in.driver(folder), cuda_stand_in.compile_plugin(folder)
