"""Option values as people write them. A value that does not parse is refused with the value in the message."""

from enum import Enum

import typer

LARGEST = 2**64 - 1


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class KVType(str, Enum):
    auto = "auto"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    int8 = "int8"


class Quantize(str, Enum):
    none = "none"
    int4 = "int4"
    int8 = "int8"


def whole(text: str) -> int:
    """-12, 4096"""
    try:
        value = int(text)
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)} is not a whole number") from None
    if abs(value) > LARGEST:
        raise typer.BadParameter(f"{shorten(text)} is out of range")
    return value


def layer_count(text: str) -> int:
    """12, auto (-1), all"""
    count = {"auto": -1, "all": LARGEST}.get(text)
    if count is None and (count := whole(text)) < -1:
        raise typer.BadParameter(f"{shorten(text)} is not a number of layers, auto or all")
    return count


def real(text: str) -> float:
    """0.7, 1e-3"""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)} is not a number") from None


def percent(text: str) -> float:
    """"5%" or "0.05" -> 0.05"""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)} is not a share (like 5% or 0.05)") from None
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{shorten(text)} is not between 0 and 1 (like 5% or 0.05)")
    return value


def token_count(text: str) -> int:
    """4096, 32k (thousands), 32K (1024s): vLLM's reading of the suffixes."""
    factor = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    try:
        value = float(digits) * factor if "." in digits and factor > 1 else int(digits) * factor
    except ValueError:
        raise typer.BadParameter(f"{shorten(text)} is not a number of tokens (like 4096 or 32k)") from None
    if not abs(value) <= LARGEST or value != int(value):
        raise typer.BadParameter(f"{shorten(text)} is not a whole number of tokens")
    return int(value)


def byte_count(text: str) -> int:
    """8GiB, 500MB, 8G (of 1024s), 1000000"""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
             "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    digits = text.rstrip("KkMmGgTtIiBb")
    unit = text[len(digits):].upper()
    try:
        value = float(digits) * units[unit]
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{shorten(text)} is not a size (like 8GiB or 500MB)") from None
    if not 0 < value <= LARGEST:
        raise typer.BadParameter(f"{shorten(text)} is not a size above zero")
    return int(value)


def logit_bias(texts: "list[str]") -> "dict[int, float]":
    """["15043=1.5", "220-2", "13+inf"] -> {15043: 1.5, 220: -2.0, 13: inf}: our ID=VALUE, and llama.cpp's ID(+/-)VALUE."""
    biases = {}
    for text in texts:
        end = len(text) - len(text.lstrip("0123456789"))
        separator, value = text[end : end + 1], text[end + 1 :]
        try:
            if end == 0 or separator not in ("=", "+", "-"):
                raise ValueError
            biases[int(text[:end])] = float(value) * (-1 if separator == "-" else 1)
        except ValueError:
            message = f"{shorten(text)} is not ID=VALUE (like 15043=-2.5), ID+VALUE or ID-VALUE"
            raise typer.BadParameter(message, param_hint="'--logit-bias'") from None
    return biases


def shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
