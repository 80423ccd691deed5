"""`genkit bench against` as one call: what is to be compared, and the comparing."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping

from genkit.bench.peers import engines, files
from genkit.bench.peers.workloads import Workload
from genkit.checks import whole_number
from genkit.errors import UsageError

if TYPE_CHECKING:
    from genkit.bench.results import Results
    from genkit.checkpoints import Checkpoint, Fields

FLOATS = ("f32", "f16", "bf16")
Tell = Callable[[str, int, int], None]


@dataclass
class Plan:
    """model: a folder or a name on the hub; or shape: a name of bench/shapes.py. types: None for all. rounds,
    ci, seconds: as in Settings. pythons: family -> interpreter. `check` fills what follows from the model."""

    peers: list[str]
    tests: list[Workload]
    model: str | None = None
    shape: str | None = None
    types: list[str] | None = None
    threads: int | None = None
    rounds: int = 5
    ci: float = 0.05
    seconds: float = 0.0
    isa: str | None = None
    pythons: Mapping[str, str] = field(default_factory=dict)
    work: Path | None = None
    patience: float = 10.0
    engines: list[engines.Engine] = field(init=False)
    folder: Path | None = field(init=False, default=None)
    name: str = field(init=False)
    dtype: str = field(init=False)
    vocabulary: int = field(init=False)
    longest: int = field(init=False)
    kv_bytes: float = field(init=False)

    def check(self) -> "Plan":
        """Raises UsageError and BadFileError for what cannot be compared; nothing is measured or written."""
        from genkit.engine import choose_threads

        engines.check_peers(self.peers)
        if self.isa is not None and self.isa not in engines.ISA:
            raise UsageError(f"--isa {self.isa}: expected {', '.join(engines.ISA)}")
        self.threads = choose_threads(self.threads)
        self.rounds = whole_number("-r", self.rounds, 1, 1000)
        if not self.tests:
            raise UsageError("nothing to measure: -p and -n are both none")
        with ExitStack() as stack:
            self._read(*self._open(stack))
        self.engines = engines.choose(self.peers, self.types, self.dtype)
        for test in self.tests:
            if test.context > self.longest:
                raise UsageError(f"{test.name} needs {test.context} tokens of context, and {self.name} was made for {self.longest}; "
                                 "name a smaller -p, -n or --depth")
        return self

    def _open(self, stack: ExitStack) -> "tuple[Fields, Checkpoint]":
        from genkit import DEFAULT_MODEL, checkpoints
        from genkit.opening import open_model

        if self.shape is not None:
            from genkit.bench.shapes import open_shape

            self.name = self.shape
            floats = [type for type in self.types or () if type in FLOATS] or ["bf16"]
            if len(floats) > 1:
                raise UsageError(f"--type {','.join(floats)}: weights are made in one of them")
            return open_shape(self.shape, floats[0])
        path = checkpoints.resolve(str(self.model or DEFAULT_MODEL))
        self.name = str(self.model) if self.model and not Path(self.model).exists() else path.resolve().name
        if not path.is_dir():
            raise UsageError(f"{self.model}: a file; peers read a folder of float weights in their own forms: "
                             "genkit convert MODEL FOLDER --format safetensors --type bf16 makes one")
        self.folder = path
        opened = open_model(path, stack)
        return opened.fields, opened.checkpoint

    def _read(self, fields: "Fields", checkpoint: "Checkpoint") -> None:
        from genkit.kv_cache import PAGE_KEYS, page_bytes
        from genkit.models import read_model_config

        if checkpoint.quantized:
            raise UsageError(f"{self.name}: its weights are codes, which peers would read in other forms; name a folder of floats, "
                             "like the one it was made from, or what genkit convert MODEL FOLDER --format safetensors --type bf16 makes")
        config = read_model_config(fields, checkpoint)
        self.vocabulary, self.longest = config.vocab_size, config.max_positions
        self.kv_bytes = page_bytes(config.layers, config.kv_heads, config.head_dim, "f16") / PAGE_KEYS
        sizes: "Counter[str]" = Counter()
        for info in checkpoint.tensors.values():
            sizes[info.dtype] += info.nbytes * (len(info.shape) > 1)
        self.dtype = sizes.most_common(1)[0][0]
        if self.dtype not in FLOATS:
            raise UsageError(f"{self.name}: its weights are {self.dtype}; peers are compared on {', '.join(FLOATS)}")

    def settings(self) -> dict[str, Any]:
        """For Results.settings."""
        return {"model": self.name, "peers": self.peers, "types": self.types, "threads": self.threads, "rounds": self.rounds,
                "ci": self.ci, "seconds": self.seconds, "isa": self.isa}


def measure(results: "Results", plan: Plan, tell: "Tell | None" = None) -> None:
    """Fills the rows of the results, of a plan that was checked. A peer that fails is a row that says so. Raises UsageError
    and ResourceError for a work folder that cannot be used, ResourceError for a shape the disk has no room for."""
    from genkit.bench.peers.measure import Comparison, Settings

    folder = plan.folder
    if folder is None:
        from genkit.bench.shapes import folder_for

        folder = folder_for(plan.shape, plan.dtype, progress=tell and (lambda done, total: tell(f"writing {plan.shape}", done, total)))
    work = files.WorkFolder((plan.work or files.default_folder(folder)).resolve(), folder)
    try:
        settings = Settings(folder.resolve(), plan.name, plan.dtype, plan.vocabulary, plan.longest, plan.kv_bytes,
                            plan.threads, plan.rounds,
                            plan.ci, plan.seconds, plan.isa, plan.pythons, plan.patience)
        Comparison(results, settings, plan.engines, plan.tests, work, tell).run()
    finally:
        work.close()


def parse_pythons(texts: Iterable[str]) -> dict[str, str]:
    """["llama.cpp=/path/to/python"] -> {"llama.cpp": "/path/to/python"}. Raises UsageError."""
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in engines.FAMILIES or not path:
            raise UsageError(f"--python {text}: expected PEER=PATH with one of {', '.join(engines.FAMILIES)}")
        found[name] = path
    return found
