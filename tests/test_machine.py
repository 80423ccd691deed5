"""What the machine lets us use, as it says itself, and as containers of both kinds of control groups say it."""

import ctypes
import math
import os
import subprocess
import sys
import textwrap

import pytest

from genkit import machine

GB = 1 << 30


def run_python(code, **options):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60,
                          **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lay_out(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def mount(inside, at, kind, options="rw"):
    """A line of /proc/self/mountinfo."""
    return f"31 23 0:28 {inside} {at} rw,nosuid - {kind} cgroup {options}\n"


def v2_machine(root, group, mounted="/", **controls):
    """A machine with cgroup v2 and 64 GB, this process in `group`; controls map a group's file to its content."""
    files = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mount(mounted, "/sys/fs/cgroup", "cgroup2"),
             "proc/meminfo": "MemTotal:       67108864 kB\nMemFree: 1 kB\nMemAvailable:   33554432 kB\n"
             "HugePages_Total: 0\n"}
    return lay_out(root, files | {f"sys/fs/cgroup/{name}": content for name, content in controls.items()})


def v1_machine(root, group, **controls):
    files = {"proc/self/cgroup": f"5:memory:{group}\n3:cpu,cpuacct:{group}\n1:name=systemd:/init.scope\n0::/x\n",
             "proc/self/mountinfo": mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
             + mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
             + mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd"),
             "proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n"}
    return lay_out(root, files | {f"sys/fs/cgroup/{name}": content for name, content in controls.items()})


def test_this_machine():
    total, available = machine.memory_total(), machine.memory_available()
    assert 0 < available <= total
    assert total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 <= machine.available_threads() <= len(os.sched_getaffinity(0))
    assert machine.processor_name().isprintable() and len(machine.processor_name()) > 2


def test_affinity_of_the_process():
    """A process that may run on one processor starts one thread."""
    one = min(os.sched_getaffinity(0))
    out = run_python(f"""
        import os
        os.sched_setaffinity(0, {{{one}}})
        from genkit import machine
        print(machine.available_threads())
        """)
    assert out == "1\n"


def test_address_space_limit():
    """RLIMIT_AS counts what is in use already."""
    out = run_python("""
        import resource
        from genkit import machine
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
        before = machine.memory_available()
        kept = bytearray(1 << 30)
        print(machine.memory_total(), before, machine.memory_available())
        """)
    total, before, after = map(int, out.split())
    if machine.memory_available() > 4 * GB:
        assert total == 3 * GB
        assert 2 * GB < before < 3 * GB
        assert GB - (64 << 20) < before - after < GB + (64 << 20)


@pytest.mark.parametrize("content, quota", [
    ("max 100000", math.inf), ("150000 100000", 1.5), ("50000 100000", 0.5), ("1000 100000", 0.01),
    ("400000 100000", 4), ("", math.inf), ("max", math.inf), ("-1 100000", math.inf), ("0 0", math.inf),
    ("5 x", math.inf), ("1 2 3", math.inf)])
def test_cpu_quota_v2(tmp_path, content, quota):
    root = v2_machine(tmp_path, "/user/session", **{"user/session/cpu.max": content + "\n"})
    assert machine._cpu_quota(root) == quota
    here = len(os.sched_getaffinity(0))
    assert machine.available_threads(root) == max(1, min(here, math.ceil(quota) if quota < math.inf else here))


def test_cpu_quota_of_a_parent_counts(tmp_path):
    root = v2_machine(tmp_path, "/a/b/c", **{"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "250000 100000",
                                             "a/cpu.max": "300000 100000"})
    assert machine._cpu_quota(root) == 2.5


def test_container_with_its_own_mount(tmp_path):
    """In a container the group's tree is mounted from the group on, and /proc/self/cgroup names the full path."""
    root = v2_machine(tmp_path, "/docker/0123", mounted="/docker/0123",
                      **{"cpu.max": "70000 100000", "memory.max": f"{2 * GB}\n", "memory.current": f"{GB}\n",
                         "memory.stat": f"anon 1\ninactive_file {GB // 4}\nactive_file {GB // 4}\nslab 5\n"})
    assert machine._cpu_quota(root) == 0.7 and machine.available_threads(root) == 1
    assert machine.memory_total(root) == 2 * GB
    assert machine.memory_available(root) == 2 * GB - GB // 2
    # With a namespace of its own it sees "/" for both.
    other = v2_machine(tmp_path / "ns", "/", **{"memory.max": "1073741824", "memory.current": "0"})
    assert machine.memory_total(other) == GB
    # A group outside of what is mounted ("/../sibling"): the mount itself is what there is to see.
    third = v2_machine(tmp_path / "out", "/../sibling", **{"memory.max": "1073741824"})
    assert machine.memory_total(third) == GB


@pytest.mark.parametrize("quota, period, expected", [("-1", "100000", math.inf), ("150000", "100000", 1.5),
                                                     ("20000", "50000", 0.4), ("x", "100000", math.inf)])
def test_cpu_quota_v1(tmp_path, quota, period, expected):
    root = v1_machine(tmp_path, "/docker/0123", **{"cpu,cpuacct/docker/0123/cpu.cfs_quota_us": quota + "\n",
                                                   "cpu,cpuacct/docker/0123/cpu.cfs_period_us": period + "\n"})
    assert machine._cpu_quota(root) == expected


def test_memory_v1(tmp_path):
    root = v1_machine(tmp_path, "/a/b", **{
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n", "memory/a/b/memory.usage_in_bytes": "4096\n",
        "memory/a/memory.limit_in_bytes": f"{3 * GB}\n", "memory/a/memory.usage_in_bytes": f"{2 * GB}\n",
        "memory/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}\ntotal_active_file 0\n"})
    assert machine.memory_total(root) == 3 * GB
    assert machine.memory_available(root) == 2 * GB


def test_memory_without_limits(tmp_path):
    root = v2_machine(tmp_path, "/", **{"memory.max": "max\n", "memory.current": f"{GB}\n"})
    assert machine.memory_total(root) == 64 * GB
    assert machine.memory_available(root) == 32 * GB


def test_group_beyond_its_limit_has_nothing(tmp_path):
    root = v2_machine(tmp_path, "/", **{"memory.max": f"{GB}", "memory.current": f"{2 * GB}"})
    assert machine.memory_available(root) == 0


def test_no_proc_at_all(tmp_path):
    """As on a system that is no Linux: what Python knows."""
    assert machine.memory_total(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.memory_available(tmp_path) <= machine.memory_total(tmp_path)
    assert machine.available_threads(tmp_path) == len(os.sched_getaffinity(0))
    assert machine.processor_name(tmp_path)


def test_broken_control_files(tmp_path):
    root = v2_machine(tmp_path, "/g", **{"g/cpu.max": "\xff\x00", "g/memory.max": "lots", "memory.max": "5" * 30,
                                         "g/memory.stat": "inactive_file\nactive_file x\n\n"})
    lay_out(root, {"proc/self/mountinfo": "nonsense\n- - -\n" + mount("/", "/sys/fs/cgroup", "cgroup2")
                   + "1 2 3:4 / /x rw - tmpfs\n"})
    assert machine._cpu_quota(root) == math.inf
    assert machine.memory_total(root) == 64 * GB


@pytest.mark.parametrize("cpuinfo, name", [
    ("processor\t: 0\nvendor_id\t: X\nmodel name\t: Some CPU @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: Other\n",
     "Some CPU @ 3 GHz"),
    ("processor : 0\nBogoMIPS : 50\nCPU implementer : 0x41\n\nModel : Raspberry Pi 5\n", "Raspberry Pi 5")])
def test_processor_name(tmp_path, cpuinfo, name):
    assert machine.processor_name(lay_out(tmp_path, {"proc/cpuinfo": cpuinfo})) == name


def test_cuda_state_is_said_in_words():
    """In words, whatever the machine; tests/test_cuda.py has drivers and plugins of every kind."""
    usable, reason = machine.cuda_state()
    assert reason.isprintable()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert not usable and reason in ("CUDA is not built into this package", "no NVIDIA driver (libcuda.so.1 not found)")


def test_cuda_state_without_the_plugin(tmp_path):
    """The same package with the plugin taken away."""
    out = run_python("""
        from pathlib import Path
        from genkit import machine
        machine.CUDA_PLUGIN = "libgenkit_cuda_absent.so"
        print(machine.cuda_state())
        """)
    assert out == "(False, 'CUDA is not built into this package')\n"
