"""Where a model runs: the processor, or a GPU through the plugin beside the core."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from typing import Any, Iterator, TypeVar

from genkit import _core, machine
from genkit.errors import DeviceError, ResourceError, UsageError
from genkit.plaintext import format_bytes

T = TypeVar("T")

# Objects that hold weights: those of these modules, and what they hold in turn.
LAYERS = ("genkit.nn", "genkit.moe", "genkit.models")
WEIGHTS = (_core.Tensor, _core.PackedWeight, _core.ExpertWeights)


# Whether auto may take a GPU: only while nothing of cuda/ has changed since scripts/gpu.sh found all right on one. On 2026-11-28
# (an H200, commit 742112c) it found slots and bits right; the faster kernels that came after it have run in the shim of tests/ only, or in part.
PROVEN = False


def choose_device(device: str) -> str:
    """"cuda" or "cpu"; auto: the GPU where one can be used and PROVEN. Raises DeviceError when a GPU is asked for and cannot be used,
    UsageError for an unknown device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device is '{device}'; expected auto, cpu or cuda")
    if device == "auto":
        return "cuda" if PROVEN and machine.cuda_state()[0] else "cpu"
    if device == "cuda":
        usable, reason = machine.cuda_state()
        if not usable:
            raise DeviceError(f"--device cuda: {reason}; use --device cpu or auto")
    return device


def why_processor() -> str:
    """Why auto is the processor where one may expect a GPU; "" where it is the GPU, or nobody expects one."""
    if not machine.gpu_expected():
        return ""
    usable, reason = machine.cuda_state()
    if usable and not PROVEN:
        return "its CUDA kernels have changed since they last ran on a GPU; --device cuda uses them"
    return "" if usable else reason


def choose_measured(device: str, of_processor: bool) -> str:
    """As choose_device; of_processor: what only a processor has is to be measured, so that auto is none but that."""
    return choose_device("cpu" if device == "auto" and of_processor else device)


def wait(device: str) -> None:
    """Until the device has done all that this thread started there: before a clock is read."""
    if device != "cpu":
        with using(device):
            _core.Tensor.zeros([1], "u8").numpy()  # copies back come after all else


@contextmanager
def using(device: str) -> Iterator[None]:
    """Ops of this thread run on the device, and new tensors lie there, until it is left; then where they did before."""
    before = _core.device_in_use()
    _core.use_device(device)
    try:
        yield
    except RuntimeError as error:
        if device != "cpu" and str(error).startswith("cuda"):
            raise DeviceError(f"{error}; --device cpu does without it") from None
        raise
    except MemoryError:
        if device == "cpu":
            raise
        raise ResourceError(f"--device {device}: its memory ran out in the middle of a step, {format_bytes(free_memory(device))} are "
                            "free there; use a smaller --context or -n, fewer sequences at once, --kv-type int8 or fewer "
                            "--gpu-layers") from None
    finally:
        _core.use_device(before)


def stepping(device: str, items: Iterator[T]) -> Iterator[T]:
    """The same items, each made on the device; between them the thread is the caller's."""
    try:
        while True:
            with using(device):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        with using(device):
            items.close()


def free_memory(device: str) -> int:
    """Bytes that can be taken now."""
    return machine.memory_available() if device == "cpu" else _core.device_facts()["available"]


def most_used(device: str) -> int | None:
    """Bytes of a GPU that were taken at most since this was asked last; None for the processor, and where the plugin does not say."""
    if device == "cpu":
        return None
    import ctypes

    try:
        ask = ctypes.CDLL(str(machine.cuda_plugin())).genkit_most_used
    except AttributeError:
        return None
    ask.restype = ctypes.c_int64
    return most if (most := ask()) >= 0 else None


def place(layer: Any, device: str, placed: dict[int, Any] | None = None) -> Any:
    """A layer like this one whose weights are on the device; what holds none stays itself, what is shared stays shared, and
    with the same `placed` also between calls. The layer is left as it is. Raises ResourceError when they do not fit."""
    placed = {} if placed is None else placed
    if id(layer) in placed:
        return placed[id(layer)][0]
    moved = layer
    if isinstance(layer, WEIGHTS):
        try:
            moved = layer.to(device)
        except MemoryError:
            raise ResourceError(f"--device {device}: no memory for a weight of {format_bytes(layer.nbytes)}, "
                                f"{format_bytes(free_memory(device))} are free there; use --quantize, fewer --gpu-layers or "
                                "--device cpu") from None
    elif isinstance(layer, (tuple, list)):
        parts = [place(part, device, placed) for part in layer]
        if any(new is not old for new, old in zip(parts, layer)):
            moved = type(layer)(*parts) if hasattr(layer, "_fields") else type(layer)(parts)
    elif isinstance(layer, dict) or _holds(layer):
        values = layer if isinstance(layer, dict) else vars(layer)
        new = {name: place(value, device, placed) for name, value in values.items()}
        if any(new[name] is not value for name, value in values.items()):
            moved = new if isinstance(layer, dict) else copy(layer)
            if moved is not new:
                vars(moved).update(new)
    placed[id(layer)] = moved, layer  # the second keeps the id from being another's
    return moved


def weights(layer: Any, seen: dict[int, Any] | None = None) -> "list[Any]":
    """All weights of a layer, each once."""
    seen = {} if seen is None else seen
    if id(layer) in seen:
        return []
    seen[id(layer)] = layer
    if isinstance(layer, WEIGHTS):
        return [layer]
    parts = layer.values() if isinstance(layer, dict) else layer if isinstance(layer, (tuple, list)) else \
        vars(layer).values() if _holds(layer) else ()
    return [weight for part in parts for weight in weights(part, seen)]


def _holds(layer: Any) -> bool:
    return type(layer).__module__.startswith(LAYERS) and hasattr(layer, "__dict__")
