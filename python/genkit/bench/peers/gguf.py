"""A Hugging Face folder of the Llama kind as GGUF, for llama.cpp to measure: without vocabulary, since a benchmark speaks in
token ids."""

from __future__ import annotations

from pathlib import Path

from genkit import checkpoints
from genkit.errors import BadFileError
from genkit.models import read_model_config
from genkit.quant.writers.base import FLOATS, Source
from genkit.quant.writers.gguf import Model


def write_gguf(folder: Path, out: Path) -> None:
    """Raises BadFileError for a model that cannot be read, UsageError for one of another kind."""
    fields = checkpoints.read_config(folder)
    with checkpoints.open_checkpoint(folder) as checkpoint:
        config = read_model_config(fields, checkpoint)
        writer = Model(Source(folder, fields, config), vocabulary=False)
        arrays, kinds = {}, {}
        for name, info in checkpoint.tensors.items():
            if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tied):
                continue
            if info.dtype not in FLOATS:
                raise BadFileError(f"{info.file}: tensor '{name}' has dtype {info.dtype.upper()}; llama.cpp's file is "
                                   "written from F32, F16 and BF16 only")
            kinds[name] = writer.plain(name, info.shape, info.dtype)
            arrays[name] = writer.arrays(name, info.shape, kinds[name])[0]
        file = writer.files(list(arrays.values()), kinds)[0]
        with open(out, "wb") as target:
            target.write(file.head)
            for name, kind in kinds.items():  # one at a time: a checkpoint may be larger than memory
                load = checkpoint.load_f32 if kind == "f32" else checkpoint.load
                target.seek(file.offsets[arrays[name].name])
                target.write(writer.encode(name, load(name, checkpoint.tensors[name].shape).numpy())[0])
            target.truncate(file.nbytes)
