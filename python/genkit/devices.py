"""Where a model runs: the processor, or a GPU through the plugin beside the core."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, TypeVar

from genkit import _core, machine
from genkit.errors import DeviceError, ResourceError, UsageError

T = TypeVar("T")

# Objects that hold weights: those of these modules, and what they hold in turn.
LAYERS = ("genkit.nn", "genkit.moe", "genkit.models")


# Whether auto may take a GPU: only once the CUDA kernels have run on one and all that docs/cuda.md checks there was right.
# So far they have run in the shim of tests/ on a processor, which shows their logic, not their races.
PROVEN = False


def choose_device(device: str) -> str:
    """"cuda" or "cpu"; auto: see PROVEN and why_processor. Raises DeviceError when a GPU is asked for and cannot be used,
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
    if not PROVEN:
        return "the CUDA kernels have run on no GPU yet; --device cuda uses them"
    usable, reason = machine.cuda_state()
    return "" if usable else reason


def choose_measured(device: str) -> str:
    """As choose_device, for what measures: not on a GPU yet."""
    if choose_device(device) == "cuda":
        raise DeviceError("--device cuda: nothing is measured on a GPU yet; use --device cpu")
    return "cpu"


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


def place(layer: Any, device: str, placed: dict[int, Any] | None = None) -> Any:
    """Moves all weights of a layer to the device, in place; what is shared stays shared. Returns the layer, or the moved
    tensor. Raises ResourceError when they do not fit."""
    placed = {} if placed is None else placed
    if id(layer) in placed:
        return placed[id(layer)][0]
    moved = layer
    if isinstance(layer, (_core.Tensor, _core.PackedWeight, _core.ExpertWeights)):
        try:
            moved = layer.to(device)
        except MemoryError:
            raise ResourceError(f"--device {device}: no memory for a weight of {layer.nbytes / 2**20:.0f} MiB, "
                                f"{free_memory(device) / 2**30:.1f} GiB are free there; use --quantize or --device cpu") from None
    elif isinstance(layer, tuple):
        parts = [place(part, device, placed) for part in layer]
        if any(new is not old for new, old in zip(parts, layer)):
            moved = type(layer)(*parts) if hasattr(layer, "_fields") else tuple(parts)
    elif isinstance(layer, list):
        layer[:] = [place(part, device, placed) for part in layer]
    elif isinstance(layer, dict):
        layer.update({name: place(part, device, placed) for name, part in layer.items()})
    elif type(layer).__module__.startswith(LAYERS) and hasattr(layer, "__dict__"):
        placed[id(layer)] = layer, layer
        for name, value in vars(layer).items():
            if (new := place(value, device, placed)) is not value:
                setattr(layer, name, new)
    placed[id(layer)] = moved, layer  # the second keeps the id from being another's
    return moved
