"""Several processes that share one step: each takes some of its micro-batches, and gradients are summed.

On CPU one process a core with one thread each beats one process with many threads, most of all on a busy machine:
the cores then wait for each other once a step, not at every operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

    from genkit.train.trainer import Recipe


@dataclass(frozen=True)
class Workers:
    """How many processes train together, and which of them this is (0 reports and saves)."""

    count: int = 1
    rank: int = 0

    def add_up(self, gradients: list[torch.Tensor], loss: float, stop: bool) -> tuple[float, bool]:
        """Replace the gradients by their sums over all processes; return the summed loss and whether any wants to stop.

        Raises ResourceError when another process is gone.
        """
        if self.count == 1:
            return loss, stop
        import torch
        from torch import distributed

        flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([loss, float(stop)])])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise ResourceError(f"a training process is gone: {error}; --resume goes on from the checkpoint") from error
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        return flat[-2].item(), flat[-1].item() > 0


ALONE = Workers()


def choose_workers(workers: int | None, device: str, recipe: Recipe) -> int:
    """The number asked for, else one a usable core on CPU (as many as the micro-batches of a step divide among), one
    on a GPU."""
    if workers is not None:
        if workers < 1:
            raise UsageError(f"--workers {workers}: must be at least 1")
        if workers > 1 and device != "cpu":
            raise UsageError(f"--workers {workers}: a GPU is driven by one process")
        return workers
    if device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    passes = recipe.batch_tokens // recipe.micro_batch_tokens
    return max(n for n in range(1, passes + 1) if passes % n == 0 and n <= max(1, cores))


@contextmanager
def team(count: int, out: Path, recipe: Recipe, resume: bool) -> Iterator[Workers]:
    """Start `count - 1` more processes that train the same run on CPU, and join them to this one, which is rank 0.

    They end with the run; when this process fails or is killed, they notice at the next step.
    """
    if count == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // count))
    with tempfile.TemporaryDirectory(prefix="genkit-train-") as meeting:
        job = {"out": str(out), "recipe": asdict(recipe), "resume": resume, "count": count}
        job["meeting"] = f"{meeting}/store"
        helpers = [
            subprocess.Popen([sys.executable, "-m", "genkit.train.workers", json.dumps({**job, "rank": rank})])
            for rank in range(1, count)
        ]
        try:
            _join(job["meeting"], count, 0)
            yield Workers(count, 0)
            distributed.destroy_process_group()
            for helper in helpers:
                helper.wait()
        finally:
            for helper in helpers:
                if helper.poll() is None:
                    helper.terminate()
                    helper.wait()
            torch.set_num_threads(threads)


def _join(meeting: str, count: int, rank: int) -> None:
    from torch import distributed

    keep_memory()
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: a step frees and takes gigabytes, and fresh pages cost a fault each.
    One pass of the default model went from 1.08 to 0.94 s by it."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: nothing by mmap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give little back


def _main() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 hears Ctrl-C and tells the others after the step
    job = json.loads(sys.argv[1])

    import torch

    from genkit.train.model import Sizes
    from genkit.train.trainer import Recipe, Trainer

    torch.set_num_threads(max(1, torch.get_num_threads() // job["count"]))
    settings = job["recipe"]
    recipe = Recipe(**{**settings, "sizes": Sizes(**settings["sizes"])})
    _join(job["meeting"], job["count"], job["rank"])
    Trainer(Path(job["out"]), recipe, "cpu", job["resume"], Workers(job["count"], job["rank"])).run()


if __name__ == "__main__":
    try:
        _main()
    except ResourceError:
        sys.exit(4)  # rank 0 is gone, or says the same
