"""Mutants (mutants.py) of model folders in every form that is read. GGUF's are in test_formats_gguf_hostile.py."""

import faulthandler
import os
import re
import signal
import time

import numpy as np
import pytest
from format_files import write_model, writer_for_folder
from foreign_files import write_foreign
from gguf_files import SIZES, make_model
from mutants import Seed, hunt, mutant

from genkit.errors import BadFileError
from genkit.quant.rounding import round_matrix

SMALL = SIZES | dict(model_type="llama", vocab_size=40, hidden_size=64, head_dim=16, intermediate_size=64, num_hidden_layers=1)


def plain(folder):
    return make_model(folder, SMALL, np.random.default_rng(1))


def written(form, kind, *more):
    """A folder by one of our own writers."""
    def make(folder):
        from genkit.checkpoints import open_checkpoint, read_config

        made = writer_for_folder(form, plain(folder.with_name("source")))
        source = folder.with_name("source")
        format = made.format(kind, *more)
        with open_checkpoint(source, read_config(source)) as checkpoint:
            values = {}
            for name, info in checkpoint.tensors.items():
                array = values[name] = checkpoint.load_f32(name, info.shape).numpy()
                if len(info.shape) == 2 and made.check(name, info.shape, format) is None:
                    values[name] = round_matrix(array, format, False)
        write_model(made, values, folder)
        return folder
    return make


def foreign(name):
    """A folder by others' layouts."""
    def make(folder):
        from genkit.checkpoints import open_checkpoint

        with open_checkpoint(plain(folder.with_name("source"))) as checkpoint:
            weights = {name: checkpoint.load(name, info.shape).numpy().copy() for name, info in checkpoint.tensors.items()}
        folder.mkdir()
        write_foreign(folder, SMALL, name, weights)
        return folder
    return make


SEEDS = {"floats": plain, "native-int8": written("genkit", "int8"),
         "compressed-tensors": written("compressed-tensors", "int4", 32, True),
         "gptq": written("gptq", "int4", 32), "mlx": written("mlx", "int4", 32)}
SEEDS |= {name: foreign(name) for name in ("ct-8-asym", "ct-actorder", "ct-w8a8-asym", "ct-fp8-block", "gptq-order", "autoround",
                                           "awq", "bnb-int8", "bnb-nf4-nested", "mlx-6", "fp8-block")}
COUNT = 850  # of each; with those of GGUF and of tokenizers 20,000


@pytest.mark.parametrize("name", SEEDS)
def test_mutants(name, tmp_path):
    refusals = hunt({name: Seed.folder(SEEDS[name](tmp_path / "seed"))}, COUNT, tmp_path)
    assert refusals[name]


def crashes():
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def spins():
    end = time.process_time() + 1.1
    while time.process_time() < end:
        pass


def balloons():
    np.ones(32 << 20)


def raises_another():
    raise ValueError("wrong")


def says_nothing():
    raise BadFileError("no")


@pytest.mark.parametrize("act,words", [(crashes, "SIGSEGV"), (spins, "took 1."), (balloons, "memory grew by 2"),
                                       (raises_another, "ValueError: wrong"), (says_nothing, "message 'no'")])
def test_the_loop_sees(act, words, tmp_path):
    data = bytes(range(100))

    def attempt(path):
        if path.read_bytes() != data:
            act()

    seed = Seed({"a": data}, attempt, open="a")
    with pytest.raises(AssertionError) as found:
        hunt({"it": seed}, 2, tmp_path)
    lines = str(found.value).split("seed it, mutant ")[1:]
    assert lines and all(words in line for line in lines), found.value
    [number, *_] = map(int, re.findall(r"mutant (\d+)", str(found.value)))
    name, changed = mutant(seed, number)
    assert (tmp_path / f"mutant-it-{number}" / name).read_bytes() == changed != data
