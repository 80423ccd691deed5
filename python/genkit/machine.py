"""What this process may use of the machine: threads, memory, processor, CUDA. Linux first; elsewhere what Python knows.

Containers limit through control groups (cgroup v2, or v1's hierarchies), so a machine's own figures are upper bounds.
Functions take `root` so that tests can lay out /proc and /sys as other machines have them.
"""

import importlib.util
import math
import os
import platform
import struct
from pathlib import Path
from typing import Any

CUDA_PLUGIN = "libgenkit_cuda.so"
NOT_BUILT = "CUDA is not built into this package"
CUBLASLT = ("libcublasLt.so.13", "libcublasLt.so.12")
_ROOT = Path("/")
_opened_by: int | None = None  # the process that has opened the device


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _cgroup_folders(root: Path, controller: str) -> list[tuple[int, Path]]:
    """(version, folder) of this process's groups for a controller and their parents, innermost first.

    /proc/self/cgroup names the group, /proc/self/mountinfo where its tree is mounted and which part of it: inside a
    container the mount often begins at the container's own group.
    """
    groups: dict[str, str] = {}  # controller, "" for v2 -> path
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        for name in names.split(","):
            groups[name] = group
    folders: list[tuple[int, Path]] = []
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            version, group = 2, groups.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            version, group = 1, groups.get(controller)
        else:
            continue
        if group is None:
            continue
        mount = root / fields[4].lstrip("/")
        inside = os.path.relpath(group, fields[3])
        parts = [] if inside == "." or inside.startswith("..") else inside.split("/")
        folders += [(version, mount.joinpath(*parts[:depth])) for depth in range(len(parts), -1, -1)]
    return folders


def _number(text: str | None) -> int | None:
    """The number in a control file; None for "max", for -1 and for no file."""
    try:
        value = int(text or "")
    except ValueError:
        return None
    return value if value >= 0 else None


def _cpu_quota(root: Path) -> float:
    """Processors' worth of time the control groups allow; infinity without a quota."""
    quota = math.inf
    for version, folder in _cgroup_folders(root, "cpu"):
        if version == 2:
            words = (_read(folder / "cpu.max") or "").split()
        else:
            words = [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
        limit, period = (_number(word) for word in words) if len(words) == 2 else (None, None)
        if limit and period:
            quota = min(quota, limit / period)
    return quota


def available_threads(root: Path = _ROOT) -> int:
    """Threads worth starting: processors this process may run on, cut to the control groups' quota; at least 1."""
    try:
        processors = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        processors = os.cpu_count() or 1
    return max(1, math.ceil(min(processors, _cpu_quota(root))))


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    result: dict[str, int] = {}
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        value = _number((rest.split() or [""])[0])
        if value is not None:
            result[name] = value * 1024
    return result


def _physical(name: str) -> int:
    """Bytes by sysconf, for systems without /proc; 0 if it does not know."""
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def _memory_groups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group that has a limit. Cached file pages are not counted as used: the
    kernel drops them when memory is short."""
    result: list[tuple[int, int]] = []
    for version, folder in _cgroup_folders(root, "memory"):
        names = ("memory.max", "memory.current", "") if version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        limit = _number(_read(folder / names[0]))
        if limit is None:
            continue
        used = _number(_read(folder / names[1])) or 0
        statistics = dict(line.split()[:2] for line in (_read(folder / "memory.stat") or "").splitlines()
                          if len(line.split()) >= 2)
        cached = sum(_number(statistics.get(names[2] + key)) or 0 for key in ("inactive_file", "active_file"))
        result.append((limit, max(0, used - cached)))
    return result


def cgroup_limits(root: Path = _ROOT) -> "dict[str, float | None]":
    """What the control groups allow: processors' worth of time, and bytes; None for what they leave alone."""
    quota = _cpu_quota(root)
    memory = min((limit for limit, _ in _memory_groups(root)), default=math.inf)
    machine = _meminfo(root).get("MemTotal", math.inf)  # v1 says "no limit" with a number beyond any memory
    return {"processors": None if quota == math.inf else quota, "memory": memory if memory < machine else None}


def _address_space() -> tuple[float, int]:
    """RLIMIT_AS and what of it is in use, in bytes; infinity without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        unlimited = limit == resource.RLIM_INFINITY
    except (ImportError, ValueError, OSError):
        return math.inf, 0
    if unlimited:
        return math.inf, 0
    pages = _number((_read(Path("/proc/self/statm")) or "").partition(" ")[0]) or 0
    return limit, pages * os.sysconf("SC_PAGE_SIZE")


def memory_total(root: Path = _ROOT) -> int:
    """Bytes this process could use at most on an idle machine: RAM, control group limits, RLIMIT_AS."""
    machine = _meminfo(root).get("MemTotal") or _physical("SC_PHYS_PAGES")
    return int(min([machine, _address_space()[0], *(limit for limit, _ in _memory_groups(root))]))


def memory_available(root: Path = _ROOT) -> int:
    """Bytes this process can take now without swapping: free memory, what the control groups and RLIMIT_AS leave."""
    machine = _meminfo(root).get("MemAvailable") or _physical("SC_AVPHYS_PAGES")
    limit, used = _address_space()
    return int(max(0, min([machine, limit - used, *(top - taken for top, taken in _memory_groups(root))])))


def processor_name(root: Path = _ROOT) -> str:
    """The processor as the system names it ("Intel(R) Xeon(R) ..."), or the architecture ("aarch64")."""
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def cuda_plugin() -> Path:
    """Where the plugin is, if it was built: beside the core."""
    core = importlib.util.find_spec("genkit._core")
    return (Path(core.origin).parent if core and core.origin else Path(__file__).parent) / CUDA_PLUGIN


def _cut_short(library: Path) -> str:
    """What is wrong with a library that ends before its table of sections: opened, it would be the end of the process."""
    with library.open("rb") as file:
        header = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return ""  # whoever opens it says so
    table, = struct.unpack_from("<Q", header, 40)
    each, count = struct.unpack_from("<HH", header, 58)
    if table + each * count <= size:
        return ""
    return f"the plugin is cut short ({size} of {table + each * count} bytes); install the package again"


def cuda_state() -> tuple[bool, str]:
    """Whether CUDA can be used, and why not (or what with) in words. Opens libraries, raises nothing."""
    plugin = cuda_plugin()
    if not plugin.exists():
        return False, NOT_BUILT
    from genkit import _core

    if not _core.driver_state()[1]:
        name_cublaslt()
    global _opened_by
    if _opened_by not in (None, os.getpid()):
        return False, "this process was forked from one that had opened the device; start it afresh (spawn)"
    if trouble := _core.driver_state()[1] or _cut_short(plugin) or _core.open_device(str(plugin)):
        return False, trouble
    _opened_by = os.getpid()
    facts = _core.device_facts()
    return True, (f"{facts['name']}, compute capability {facts['capability']}, {facts['available'] / 2**30:.1f} of "
                  f"{facts['memory'] / 2**30:.1f} GiB free, driver for CUDA {facts['driver']}, kernels for {facts['targets']}")


def cuda_facts() -> dict[str, Any]:
    """What there is for CUDA, part by part: each a dictionary, with a "reason" where it is missing (else None)."""
    from genkit import _core

    version, trouble = _core.driver_state()
    usable, reason = cuda_state()
    facts = _core.device_facts() if usable else {}
    plugin = cuda_plugin()
    built = plugin.exists()
    library, missing = cublaslt()
    if usable and library:
        missing = _blas_trouble(plugin)
    return {
        "driver": {"version": version or None, "reason": trouble or None},
        "plugin": {"path": str(plugin) if built else None, "targets": facts.get("targets"),
                   "reason": None if built else NOT_BUILT},
        "device": {name: facts.get(name) for name in ("name", "capability", "processors", "memory", "available")}
        | {"reason": None if usable else reason},
        "cublaslt": {"path": library, "reason": missing},
    }


def cublaslt() -> tuple[str | None, str | None]:
    """The cuBLASLt that can be opened, by path or by the name the system knows it by, and why there is none."""
    if os.environ.get("GENKIT_CUDA_BLAS") == "0":
        return None, "GENKIT_CUDA_BLAS=0"
    import ctypes

    given = os.environ.get("GENKIT_CUBLASLT")
    nvidia = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (nvidia and nvidia.submodule_search_locations) or ()]
    candidates = [found for name in CUBLASLT for found in (*(str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))), name)]
    for candidate in [given] if given else candidates:
        try:
            ctypes.CDLL(candidate)
        except OSError:
            continue
        return candidate, None
    if given:
        return None, f"GENKIT_CUBLASLT={given} cannot be opened"
    return None, f"{CUBLASLT[0]} not found; pip install 'genkit[cublas]' brings it"


def name_cublaslt() -> None:
    """Sets GENKIT_CUBLASLT where it is not: for the plugin, which knows no wheels, before it is opened."""
    if "GENKIT_CUBLASLT" not in os.environ and (library := cublaslt()[0]):
        os.environ["GENKIT_CUBLASLT"] = library


def _blas_trouble(plugin: Path) -> str | None:
    """Why the open plugin does without cuBLASLt, or did for a product."""
    import ctypes

    trouble = ctypes.CDLL(str(plugin)).genkit_blas_trouble
    trouble.restype = ctypes.c_char_p
    words = trouble().decode()
    return f"{words}; the plugin's own kernels are used" if words else None


def gpu_expected(root: Path = _ROOT) -> bool:
    """Whether whoever started this may expect an NVIDIA GPU: its device files or its driver's library are there, and
    CUDA_VISIBLE_DEVICES does not hide all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if (root / "dev/nvidiactl").exists() or any((root / "dev").glob("nvidia[0-9]*")):
        return True
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
