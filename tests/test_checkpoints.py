"""Weights on disk to tensors: every byte as it was, from one file or many, and nothing beyond the weights in memory."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from genkit import _core, machine
from genkit.checkpoints import check_memory, files, open_checkpoint
from genkit.checkpoints import safetensors as module
from genkit.errors import BadFileError, ResourceError

NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


def write_file(path, tensors, order=None, metadata=None):
    """A safetensors file by hand: tensors maps name -> (dtype, shape, bytes); `order` is that of the header's keys."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = {name: header[name] for name in order or header}
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def random_array(rng, shape, dtype):
    values = rng.standard_normal(shape).astype(np.float32)
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(NUMPY[dtype])


def as_f32(array, dtype):
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else array.astype(np.float32)


def write_shards(folder, shards, weight_map=None):
    """shards maps file -> tensors as write_file wants them."""
    for file, tensors in shards.items():
        write_file(folder / file, tensors)
    if weight_map is None:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def run_python(code, *arguments, **options):
    """A fresh interpreter: limits and peak memory are a process's own."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True,
                          capture_output=True, timeout=120, **options)


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_of_the_librarys_own_files(tmp_path, seed):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors = {}
    for index in range(12):
        shape = tuple(rng.integers(1, 9, size=rng.integers(0, 4)))
        tensors[f"t{index}"] = random_array(rng, shape, ["f32", "f16"][index % 2])
    tensors["empty"] = np.zeros((0, 7), np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        assert checkpoint.nbytes == sum(array.nbytes for array in tensors.values())
        for name, array in tensors.items():
            loaded = checkpoint.load(name, array.shape)
            assert loaded.shape == array.shape and loaded.dtype == {"<f4": "f32", "<f2": "f16"}[array.dtype.str]
            np.testing.assert_array_equal(loaded.numpy(), array)


@pytest.mark.parametrize("dtype", sorted(module.BITS))
def test_every_dtype_of_the_format(tmp_path, dtype):
    """Known types are found with their sizes; what cannot be computed with is refused by name when it is asked for."""
    rng = np.random.default_rng(1)
    content = rng.bytes(3 * module.BITS[dtype])  # shape [3, 8]: whole bytes for every type
    write_file(tmp_path / "model.safetensors", {"x": (dtype, [3, 8], content)})
    with open_checkpoint(tmp_path) as checkpoint:
        info = checkpoint.tensors["x"]
        assert (info.dtype, info.shape, info.nbytes) == (dtype.lower(), (3, 8), len(content))
        if info.dtype in module.LOADABLE:
            assert bytes(checkpoint.load("x", (3, 8)).bytes()) == content
        else:
            with pytest.raises(BadFileError, match=rf"model\.safetensors: tensor 'x' has dtype {dtype};"):
                checkpoint.load("x", (3, 8))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_load_f32_converts(tmp_path, dtype):
    rng = np.random.default_rng(2)
    array = random_array(rng, (5, 13), dtype)
    write_file(tmp_path / "model.safetensors", {"x": (dtype.upper(), (5, 13), array.tobytes())})
    with open_checkpoint(tmp_path) as checkpoint:
        loaded = checkpoint.load_f32("x", (5, 13))
        assert loaded.dtype == "f32"
        np.testing.assert_array_equal(loaded.numpy(), as_f32(array, dtype))


@pytest.mark.parametrize("dtypes", [["bf16"] * 3, ["f16"] * 3, ["f32"] * 3, ["bf16", "f32", "f16"], ["f16", "bf16"]])
@pytest.mark.parametrize("f32", [False, True])
def test_concat(tmp_path, dtypes, f32):
    rng = np.random.default_rng(3)
    rows = [6, 1, 3][:len(dtypes)]
    arrays = [random_array(rng, (count, 7), dtype) for count, dtype in zip(rows, dtypes)]
    names = [f"w{index}" for index in range(len(rows))]
    # On disk in another order, with a stranger between.
    write_file(tmp_path / "model.safetensors",
               {name: (dtype.upper(), array.shape, array.tobytes())
                for name, dtype, array in reversed(list(zip(names, dtypes, arrays)))} | {"other": ("U8", [3], b"abc")},
               order=["other", *names])
    with open_checkpoint(tmp_path) as checkpoint:
        fused = checkpoint.load_concat(names, [array.shape for array in arrays], f32=f32)
    if len(set(dtypes)) == 1 and not f32:
        assert fused.dtype == dtypes[0]
        np.testing.assert_array_equal(fused.numpy(), np.concatenate(arrays))
    else:
        assert fused.dtype == "f32"
        expected = np.concatenate([as_f32(array, dtype) for array, dtype in zip(arrays, dtypes)])
        np.testing.assert_array_equal(fused.numpy(), expected)


def test_concat_of_biases_and_misfits(tmp_path):
    rng = np.random.default_rng(4)
    a, b, c = (random_array(rng, shape, "f32") for shape in ((4,), (9,), (4, 3)))
    write_file(tmp_path / "model.safetensors",
               {name: ("F32", array.shape, array.tobytes()) for name, array in {"a": a, "b": b, "c": c}.items()})
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.load_concat(["a", "b"], [(4,), (9,)]).numpy(), np.concatenate([a, b]))
        with pytest.raises(ValueError, match="one under another"):
            checkpoint.load_concat(["a", "c"], [(4,), (4, 3)])
        with pytest.raises(BadFileError, match=r"tensor 'b' has shape \[9\]; config.json asks for \[8\]"):
            checkpoint.load_concat(["a", "b"], [(4,), (8,)])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (13, 29), (64, 48)])
@pytest.mark.parametrize("piece", [1, 100, 16 << 20])
def test_transposed(tmp_path, monkeypatch, dtype, shape, piece):
    monkeypatch.setattr(module, "TRANSPOSE_PIECE", piece)  # one row at a time, a few, all
    array = random_array(np.random.default_rng(5), shape, dtype)
    write_file(tmp_path / "model.safetensors", {"p": ("U8", [5], b"12345"),
                                                "w": (dtype.upper(), shape, array.tobytes())})
    with open_checkpoint(tmp_path) as checkpoint:
        turned = checkpoint.load_transposed("w", shape)
    assert turned.dtype == dtype
    np.testing.assert_array_equal(turned.numpy(), array.T)


def test_shards(tmp_path):
    rng = np.random.default_rng(6)
    shards, expected = {}, {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        shards[file] = {}
        for index in range(4):
            array = random_array(rng, (index + 1, 5), "bf16")
            shards[file][f"layer.{shard}.{index}"] = ("BF16", array.shape, array.tobytes())
            expected[f"layer.{shard}.{index}"] = array
    write_shards(tmp_path, shards)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.nbytes == sum(array.nbytes for array in expected.values())
        for name, array in expected.items():
            assert name in checkpoint
            np.testing.assert_array_equal(checkpoint.load(name, array.shape).numpy(), array)
        # Fused across shards.
        names = [f"layer.{shard}.2" for shard in range(3)]
        np.testing.assert_array_equal(checkpoint.load_concat(names, [(3, 5)] * 3).numpy(),
                                      np.concatenate([expected[name] for name in names]))


def test_single_file_wins_over_an_index(tmp_path):
    write_file(tmp_path / "model.safetensors", {"x": ("F32", [1], b"\0\0\x80\x3f")})
    (tmp_path / "model.safetensors.index.json").write_text("broken")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.load("x", (1,)).numpy()[0] == 1.0


def test_missing_tensor_and_wrong_shape_are_named(tmp_path):
    write_file(tmp_path / "model.safetensors", {"x": ("F32", [2, 3], bytes(24))})
    with open_checkpoint(tmp_path) as checkpoint:
        assert "y" not in checkpoint
        with pytest.raises(BadFileError, match="tensor 'y' is missing"):
            checkpoint.load("y", (1,))
        for shape in [(3, 2), (6,), (2, 3, 1), ()]:
            with pytest.raises(BadFileError) as error:
                checkpoint.load("x", shape)
            assert str(error.value) == (f"{tmp_path}/model.safetensors: tensor 'x' has shape [2, 3]; "
                                        f"config.json asks for {list(shape)}")


def test_read_in_pieces_with_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 1000)
    array = random_array(np.random.default_rng(7), (33, 77), "f32")
    write_file(tmp_path / "model.safetensors", {"x": ("F32", array.shape, array.tobytes())})
    told = []
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.progress = told.append
        np.testing.assert_array_equal(checkpoint.load("x", array.shape).numpy(), array)
    assert sum(told) == array.nbytes and max(told) <= 1000 and len(told) >= array.nbytes // 1000


def test_replaced_file_is_not_mixed_in(tmp_path):
    """What is loaded is the file whose header was read, though a download that finishes puts another in its place."""
    a, b = (random_array(np.random.default_rng(seed), (50,), "f32") for seed in (8, 9))
    path = write_file(tmp_path / "model.safetensors", {"x": ("F32", [50], a.tobytes())})
    with open_checkpoint(tmp_path) as checkpoint:
        write_file(tmp_path / "new", {"x": ("F32", [50], b.tobytes())}).rename(path)
        np.testing.assert_array_equal(checkpoint.load("x", (50,)).numpy(), a)
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.load("x", (50,)).numpy(), b)


@pytest.mark.parametrize("keep", [0, 1, 399])
def test_file_cut_after_it_was_opened(tmp_path, keep):
    array = random_array(np.random.default_rng(10), (10, 10), "f32")
    path = write_file(tmp_path / "model.safetensors", {"a": ("U8", [16], bytes(16)),
                                                       "x": ("F32", [10, 10], array.tobytes())})
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(path, path.stat().st_size - 400 + keep)
        for load in (checkpoint.load, checkpoint.load_f32, checkpoint.load_transposed):
            with pytest.raises(BadFileError, match=rf"file ended at byte {keep} of tensor 'x' \(400 bytes\)"):
                load("x", (10, 10))


def test_closing_gives_back_descriptors(tmp_path):
    write_shards(tmp_path, {f"m{shard}.safetensors": {f"x{shard}": ("U8", [1], b"x")} for shard in range(20)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with open_checkpoint(tmp_path) as checkpoint:
            assert len(os.listdir("/proc/self/fd")) >= before + 20
    open_checkpoint(tmp_path)  # dropped
    (tmp_path / "m19.safetensors").write_bytes(b"no")
    with pytest.raises(BadFileError):
        open_checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="closed"):
        write_file(tmp_path / "model.safetensors", {"x": ("F32", [1], bytes(4))})
        closed = open_checkpoint(tmp_path)
        closed.close()
        closed.load("x", (1,))


def test_memory_check_names_need_and_have(tmp_path):
    """A sparse file twice the machine's memory: refused before anything is read."""
    size = 2 * machine.memory_total() // 4 * 4
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ResourceError, match=r"the weights need [\d.]+ GB, [\d.]+ (GB|MB) of memory is available"):
            check_memory(checkpoint)
    write_file(path, {"x": ("F32", [3], bytes(12))})
    with open_checkpoint(tmp_path) as checkpoint:
        check_memory(checkpoint)
        with pytest.raises(ResourceError, match=r"need 12 bytes and [\d.e+]+ GB more"):
            check_memory(checkpoint, extra=2 * machine.memory_total())


def sparse_checkpoint(folder, megabytes):
    """One f32 matrix [megabytes * 256, 1024], mostly a hole on disk, with marks at both ends."""
    size = megabytes << 20
    header = json.dumps({"x": {"dtype": "F32", "shape": [megabytes * 256, 1024], "data_offsets": [0, size]}}).encode()
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + np.float32(3.5).tobytes())
        file.truncate(8 + len(header) + size - 4)
        file.seek(0, os.SEEK_END)
        file.write(np.float32(-7.25).tobytes())


@pytest.mark.parametrize("when", ["open", "load"])
def test_allocation_failure_is_a_resource_error(tmp_path, when):
    sparse_checkpoint(tmp_path, 3000)
    done = run_python("""
        import resource, sys
        from genkit.checkpoints import check_memory, open_checkpoint
        from genkit.errors import ResourceError
        from genkit import _core
        import numpy, safetensors
        def limit():
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        checkpoint = None
        def open_it():
            global checkpoint
            checkpoint = open_checkpoint(sys.argv[1])
        shape = (3000 * 256, 1024)
        attempts = [open_it, lambda: check_memory(checkpoint), lambda: checkpoint.load("x", shape),
                    lambda: checkpoint.load_concat(["x"], [shape]), lambda: checkpoint.load_transposed("x", shape)]
        if sys.argv[2] == "load":
            attempts.pop(0)()
        limit()
        for attempt in attempts if checkpoint else attempts[:1]:
            try:
                attempt()
            except ResourceError as error:
                print(error)
        """, tmp_path, when)
    lines = done.stdout.splitlines()
    if when == "open":
        assert len(lines) == 1 and "model.safetensors: no memory for its 3.15 GB" in lines[0], done.stderr
    else:
        assert len(lines) == 4, done.stdout + done.stderr
        assert "the weights need 3.15 GB" in lines[0] and "of memory is available" in lines[0]
        assert all("no memory for tensor 'x': needs 3.15 GB of 3.15 GB in all" in line for line in lines[1:])


@pytest.mark.parametrize("how", ["load", "concat", "transposed"])
def test_peak_memory_is_the_weights(tmp_path, how):
    """Done when 4: weights + 15 % + 200 MB for everything; reading alone must stay well under that."""
    sparse_checkpoint(tmp_path, 200)
    done = run_python("""
        import sys
        from genkit.checkpoints import open_checkpoint
        from genkit import _core
        import numpy, safetensors
        def peak():
            return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
        shape = (200 * 256, 1024)
        checkpoint = open_checkpoint(sys.argv[1])
        before = peak()
        if sys.argv[2] == "load":
            x = checkpoint.load("x", shape).numpy()
        elif sys.argv[2] == "concat":
            x = checkpoint.load_concat(["x"], [shape]).numpy()
        else:
            x = checkpoint.load_transposed("x", shape).numpy().T
        assert x[0, 0] == 3.5 and x[-1, -1] == -7.25 and x.shape == shape
        print(peak() - before)
        """, tmp_path, how)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.05 * (200 << 20) + (40 << 20)


def test_loading_imports_no_framework():
    done = run_python("""
        import sys
        import genkit.checkpoints, genkit.machine
        heavy = {"torch", "tokenizers", "huggingface_hub", "jinja2", "numpy", "safetensors", "genkit._core"}
        print(sorted(heavy & set(sys.modules)))
        """)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_tensor_bytes_are_the_files(tmp_path):
    """NaN payloads, infinities and denormals pass through untouched."""
    bits = np.array([0x7FC00001, 0xFF800000, 0x7F800001, 0x00000001, 0x80000000], np.uint32)
    write_file(tmp_path / "model.safetensors", {"x": ("F32", [5], bits.tobytes())})
    with open_checkpoint(tmp_path) as checkpoint:
        loaded = checkpoint.load("x", (5,))
    assert isinstance(loaded, _core.Tensor)
    np.testing.assert_array_equal(loaded.numpy().view(np.uint32), bits)
