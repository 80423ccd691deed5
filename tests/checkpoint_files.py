"""Safetensors files made by hand, right or wrong, and the check that one line of error comes of them."""

import json

import pytest

from genkit import errors


def refused(call, *arguments, kind=errors.BadFileError):
    """The message of the error that must come: of this kind, one printable line."""
    with pytest.raises(kind) as error:
        call(*arguments)
    message = str(error.value)
    assert error.value.exit_code == {errors.BadFileError: 3, errors.ResourceError: 4}[kind]
    assert message.isprintable() and 10 < len(message) < 700, message
    return message


def entry(dtype="F32", shape=(2, 3), begin=0, end=24, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def file_of(header, data=bytes(range(24)), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def write_tensors(path, tensors):
    """tensors: name -> array of float32, float16, or uint16 as bf16 bits."""
    header, data = {}, []
    at = 0
    for name, array in tensors.items():
        data.append(array.tobytes())
        dtype = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name]
        header[name] = entry(dtype, array.shape, at, at + len(data[-1]))
        at += len(data[-1])
    path.write_bytes(file_of(header, b"".join(data)))


A, B = entry(end=24), entry(begin=24, end=48)
TWO = bytes(range(48))
