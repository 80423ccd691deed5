"""The compiled core: tensors, and one function per op (cpp/ops.h), on the device in use. No maths in Python, no I/O in here.

Every op checks its arguments and raises ValueError with the failing values. Ops run on the thread team with the GIL
released and return new float32 tensors unless said otherwise. `n` is token rows, sequences are rows of a page table.
"""

from typing import Any, Callable, Optional, Sequence, TypeVar

import numpy

T = TypeVar("T")

PAGE_KEYS: int  # keys in a page of the KV cache

class Tensor:
    """A dense array, 64-byte aligned (2 MiB when large). Views share storage; rows may be strided, columns never."""

    dtype: str  # "f32", "f16", "bf16", "i8", "u8", "i16", "u16", "i32", "i64"
    shape: tuple[int, ...]
    nbytes: int
    device: str  # "cpu" or "cuda": ops take tensors of the device in use only
    def __init__(self, shape: Sequence[int], dtype: str = "f32") -> None:
        """Uninitialized. Raises MemoryError."""
    @staticmethod
    def zeros(shape: Sequence[int], dtype: str = "f32") -> "Tensor":
        """Zeros, committed page by page when written, so a large KV cache costs only what is used."""
    @staticmethod
    def from_numpy(array: numpy.ndarray, dtype: Optional[str] = None) -> "Tensor":
        """A copy. dtype="bf16" or "f16" reinterprets uint16 bits; otherwise the array's own type is kept."""
    def to(self, device: str) -> "Tensor":
        """A copy there; itself where it is. Whole numbers stay known to the host, which checks them."""
    def numpy(self) -> numpy.ndarray:
        """A view sharing memory (bf16 comes as uint16 bits). Of a tensor on a device a copy, but of whole numbers that came from
        the host: what is written to those is sent before an op, or a replay, reads them."""
    def write(self, array: numpy.ndarray) -> None:
        """Copies an array of this shape and type into a contiguous tensor, wherever that is. Raises ValueError for another one."""
    def bytes(self) -> memoryview:
        """Writable bytes of a contiguous tensor: what a file is read into."""
    def rows(self, begin: int, end: int) -> "Tensor":
        """View of rows [begin, end) of the first axis."""
    def columns(self, begin: int, end: int) -> "Tensor":
        """View of columns [begin, end) of a 2-D tensor; the row stride stays."""
    def reshape(self, shape: Sequence[int]) -> "Tensor":
        """View of a contiguous tensor under another shape."""

def convert(x: Tensor, dtype: str) -> Tensor: ...
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """ids i32 [n], table [vocab, dim] f32|f16|bf16 -> [n, dim]. Raises ValueError for an id outside the table."""
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [n, dim], weight f32 [dim] -> [n, dim]."""
def rms_norm_heads_(x: Tensor, weight: Tensor, eps: float) -> None:
    """In place over each head: x [n, heads * head_dim] (row-strided views allowed), weight f32 [head_dim]."""
def layer_norm(x: Tensor, weight: Tensor, bias: Optional[Tensor], eps: float) -> Tensor: ...
def layer_norm_heads_(x: Tensor, weight: Tensor, bias: Optional[Tensor], eps: float) -> None:
    """In place over each head, as rms_norm_heads_; weight f32 [head_dim] or [heads, head_dim], bias alike or None."""
def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, residual: Optional[Tensor] = None) -> Tensor:
    """x f32 [n, k] (row-strided allowed), weight [m, k] f32|f16|bf16, bias f32 [m], residual f32 [n, m] -> [n, m]."""
class WeightFormat:
    """What the codes of a packed weight mean (cpp/packed.h; quant/formats.py has the words)."""

    def __init__(self, packing: str, group: int, zero: str = "none", scale_dtype: str = "f16") -> None:
        """packing: "int4_two_level" (group 256), "int4" or "int8"; group: 32, 64, 128 or 256 along k, or "int4_k" or "int8_k",
        16 or 32, zero "none" or "real", scales f16; zero: "none",
        "integer" or "real"; scale_dtype: "f16" or "bf16". Raises ValueError for what there is not."""

class PackedWeight:
    """An integer weight [n, k] in kernel order. With `gated` its rows are n / 2 gates, then as many ups."""

    shape: tuple[int, int]
    packing: str
    group: int
    gated: bool
    nbytes: int
    panels: Tensor  # u8 [panels, bytes]
    def to(self, device: str) -> "PackedWeight": ...

def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, k] -> codes i8 [n, stride >= k up to 64s], scales f32 [n, k / 256 up], sums of 32 i16 (QuantizeArgs)."""
def packed_linear(x: Tensor, weight: PackedWeight, bias: Optional[Tensor] = None, residual: Optional[Tensor] = None,
                  kind: str = "") -> Tensor:
    """As linear, with x rounded to int8. A gated weight needs its activation's name and gives f(gate) * up, [n, m / 2]."""
def linears(x: Tensor, weights: Sequence[Tensor | PackedWeight], bias: Optional[Tensor] = None,
            residual: Optional[Tensor] = None) -> Tensor:
    """linear or packed_linear by each weight [n, k], outputs side by side: [m, sum of n]. No gated weights."""
def quantize_weight(weight: Tensor, format: WeightFormat, gated: bool = False) -> PackedWeight:
    """weight [n, k] f32|f16|bf16, rounded to nearest; a row with a NaN or an infinity becomes NaN."""
def round_weight(weight: Tensor, format: WeightFormat, search: bool = False, importance: Optional[Tensor] = None
                 ) -> tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """weight [n, k] f32|f16|bf16 -> codes, scales, subscales, minima, zeros as pack_weight takes them. To nearest, as
    quantize_weight does, or by search for less squared error; importance f32 [k], finite and >= 0, then weighs inputs
    (QuantizeWeightArgs). Scales are NaN where a weight is not finite or no scale would be. Raises ValueError, also for
    int8 with zeros."""
def pack_weight(codes: Tensor, scales: Tensor, subscales: Optional[Tensor], minima: Optional[Tensor],
                zeros: Optional[Tensor], k: int, format: WeightFormat, gated: bool = False) -> PackedWeight:
    """Row-major codes [n, k up to 64s] and what belongs to them (WeightCodes in packed.h). Codes of four bits may be nibbles,
    [n, half of that], the first of two neighbours the low one; then subscales are too. Raises ValueError for codes,
    subscales, minima and zeros out of range."""
def unpack_blocks(blocks: Tensor, type: str) -> tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """Blocks u8 [n, bytes of a row] of a type of GGUF ("Q4_K") -> codes, scales, subscales, minima, zeros, as pack_weight takes
    them. Raises ValueError for an unknown type and rows that are not whole blocks."""
def pack_blocks(blocks: Tensor, type: str, gated: bool = False) -> PackedWeight:
    """pack_weight of unpack_blocks, without the codes between. Raises ValueError."""
def unpack(ids: Tensor, weight: PackedWeight) -> Tensor:
    """Rows ids i32 [r] of the weight as f32 [r, k]."""
def turn_words(words: Tensor, bits: int, k: int, down: bool, order: Optional[Tensor] = None) -> Tensor:
    """Codes kept input by input -> u8 [n, k up to 64s] codes, of 4 bits [n, half of that] nibbles, zeros past k. down: words
    i32 [k bits / 32 up, n], code i of output j at bit i bits down column j (GPTQ), order i32 [k]: code i of a row is input
    order[i]. Else words [k, n / 8], of 4 bits in AWQ's order 0 2 4 6 1 3 5 7. Raises ValueError."""
class Groups:
    """The rows of each expert side by side, from a multiple of 16 on (cpp/experts.h): `regions` i32 [most, 3], expert, first
    place and rows of each; `tiles` i32 [places / 16]; `sources` i32 [places], the row at each, -1 for none; `place_of` i32
    [n, k]. Filled as the ops run: a plan finds new ones at every replay."""

    regions: Tensor
    tiles: Tensor
    sources: Tensor
    place_of: Tensor

class ExpertWeights:
    """The weights [m, k] of all experts of a layer, of one type or one format."""

    shape: tuple[int, int, int]  # experts, m, k
    packed: bool
    nbytes: int
    def to(self, device: str) -> "ExpertWeights": ...
    def __init__(self, experts: int) -> None: ...
    def set(self, expert: int, weight: "Tensor | PackedWeight") -> None:
        """Copies one expert's. Raises ValueError where it is unlike those before it."""

def route(logits: Tensor, k: int, scoring: str = "softmax", correction: Optional[Tensor] = None, groups: int = 1,
          groups_kept: int = 1, normalize: bool = False, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """logits [n, experts] -> ids i32 [n, k], best first, and weights [n, k] (RouteArgs in experts.h). scoring: "softmax",
    "softmax_chosen" or "sigmoid", the last with a correction f32 [experts] that chooses and does not weigh."""
def group_rows(ids: Tensor, experts: int) -> Groups:
    """ids i32 [n, k], the experts each row goes to."""
def gather_rows(x: Tensor, groups: Groups) -> Tensor:
    """x [n, d] -> [places, d]; places where nothing lies hold anything."""
def expert_linear(x: Tensor, groups: Groups, weights: ExpertWeights, bias: Optional[Tensor] = None, kind: str = "") -> Tensor:
    """Each expert's rows of x [places, k] times its weight, bias f32 [experts, m] -> [places, m]; with the name of an
    activation the weight holds gates, then ups: f(gate) * up, [places, m / 2]. To the bit what linear or packed_linear gives."""
def combine(y: Tensor, weights: Tensor, groups: Optional[Groups] = None, residual: Optional[Tensor] = None) -> Tensor:
    """y [places, d], weights [n, k] -> residual + the weighted sum of what each row's experts gave, [n, d]. Without groups
    row r of y [n, d] is row r's, and k is 1."""
def rope_table(positions: Tensor, inv_freq: Tensor, scale: float = 1.0) -> Tensor:
    """positions i32 [n], inv_freq f32 [half] -> [n, 2 * half]: cosines then sines, made once per step."""
def rope_(x: Tensor, table: Tensor, head_dim: int, interleaved: bool = False) -> None:
    """In place: x [n, heads * head_dim] (row-strided views allowed); rotates the first 2 * half channels of each head."""
def kv_write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, sequences: Tensor,
             positions: Tensor, k_scales: Optional[Tensor] = None, v_scales: Optional[Tensor] = None) -> None:
    """k, v [n, kv_heads * head_dim] views; pages f32|f16|bf16|i8 [kv_heads, pages, PAGE_KEYS, head_dim], ordered as
    KvPages in kernels.h says; page_table i32 [sequences, max_pages]; sequences, positions i32 [n]; scales f32
    [kv_heads, pages, PAGE_KEYS], for i8 pages only."""
def rope_kv_write(x: Tensor, table: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor,
                  sequences: Tensor, positions: Tensor, interleaved: bool = False, k_scales: Optional[Tensor] = None,
                  v_scales: Optional[Tensor] = None) -> None:
    """rope_ of x, a view of query and key heads side by side whose last columns are k, then kv_write."""
def attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, sequences: Tensor, positions: Tensor,
              scale: float, window: int = 0, alibi_slopes: Optional[Tensor] = None, k_scales: Optional[Tensor] = None,
              v_scales: Optional[Tensor] = None, softcap: float = 0.0, sinks: Optional[Tensor] = None) -> Tensor:
    """q [n, heads * head_dim] view -> [n, heads * head_dim]. Causal by position; window 0 is unlimited. softcap > 0: scores s
    become softcap * tanh(s / softcap), before ALiBi's. sinks f32 [heads]: one more score a head, which no value belongs to."""
def activation(x: Tensor, kind: str) -> Tensor:
    """kind: "silu", "gelu" (erf), "gelu_tanh" or "relu"."""
def gated(x: Tensor, kind: str) -> Tensor:
    """[n, 2 * d] (gate then up) -> f(gate) * up, [n, d]: swiglu with "silu", geglu with "gelu" or "gelu_tanh". "swiglu_oai",
    gpt-oss's: g = min(gate, 7), u = up within -7..7, g * sigmoid(1.702 g) * (u + 1)."""
def add(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """a + scale * b, any shape."""
def scale(x: Tensor, factor: float, softcap: float = 0.0) -> Tensor:
    """y = x * factor, any shape; softcap > 0: softcap * tanh(y / softcap), as Gemma 2 caps its logits."""
def gather_columns(x: Tensor, index: Tensor, y: Optional[Tensor] = None) -> Tensor:
    """x [n, w] and y [n, w2], row-strided views allowed, index i32 [m] -> [n, m]: column index of x, of y from w on, zeros for
    -1. The index is a constant: a plan does not look at it again. Raises ValueError for an index outside."""
def softmax(x: Tensor) -> Tensor: ...
def log_softmax(x: Tensor) -> Tensor: ...
def argmax(x: Tensor) -> Tensor:
    """[n, d] -> i32 [n]; lowest index among equals; -1 when a value is NaN or +infinity, -2 when all are -infinity."""
def nonfinite(x: Tensor) -> Tensor:
    """[n, d] -> i32 [n], how many values of each row are NaN or infinite."""
def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[n, d] -> values [n, k] and ids i32 [n, k], descending, equals by ascending id."""
def bias_(logits: Tensor, ids: Tensor, values: Tensor) -> None:
    """In place on [n, vocab]: adds values f32 [m] to the logits ids i32 [m], distinct, of every row."""
def penalize_(logits: Tensor, entries: Tensor, lengths: Tensor, repetition: float, presence: float, frequency: float) -> None:
    """In place on [n, vocab], by what each row has said: entries i32 [n, 3, capacity], of row r for i < lengths[r] (i32 [n]) the
    distinct ids, how often each is seen and how often generated (PenaltyArgs in sampling.h). Raises ValueError for an id outside
    the vocabulary that the host knows of; others, and those of a plan, change nothing."""
def remember_(tokens: Tensor, entries: Tensor, lengths: Tensor, recent: Tensor, next: Tensor) -> None:
    """Adds generated tokens i32 [n] to the tables of penalize_, in place; those below 0, and new ones of a full table, change
    nothing. recent i32 [n, window], next i32 [n]: the tokens in the window as a ring (RememberArgs in sampling.h), of which one
    leaves the table for each that comes; window 0: none leaves."""
def sample(logits: Tensor, sequences: Tensor, positions: Tensor, temperature: float, top_k: int, top_p: float,
           min_p: float, seed: int, finite_only: bool = False) -> Tensor:
    """[n, vocab], sequences and positions i64 [n] -> i32 [n] tokens (SampleArgs); -1 where a logit is NaN or +infinity,
    with finite_only -infinity too; -2 where all are -infinity."""
def sample_counted(logits: Tensor, sequences: Tensor, positions: Tensor, temperature: float, top_k: int, top_p: float,
                   min_p: float, seed: int, finite_only: bool = False) -> tuple[Tensor, Tensor]:
    """sample and nonfinite of the same logits; on a GPU in one look at them."""
def copy_pages(pages: Tensor, source: Tensor, target: Tensor) -> None:
    """pages [heads, count, ...]; copies page source[i] to target[i] (i32) in every head."""

class Arena:
    """Memory for intermediates, used again and again: a large tensor from the system costs as much as filling it."""

    def run(self, body: Callable[..., T], *arguments: Any) -> T:
        """Calls body. Tensors that ops make meanwhile, on this thread, lie in memory that earlier ones have given up."""

class Plan:
    """The kernels that ops called while `record` ran, to be run again with the same addresses: what varies lies in tensors
    whose contents change between replays. Keeps alive all it reads; its own intermediates share one arena."""

    steps: int  # kernels
    phases: int  # of them that are split over the team
    arena: list[Tensor]  # u8, all memory of intermediates
    @staticmethod
    def record(body: Callable[[], T], beside: Optional["Plan"] = None) -> tuple["Plan", T]:
        """Calls body. Its ops, on this thread, check arguments and allocate, and compute nothing before the first replay:
        what it returns is then filled. Tensors made of numpy arrays meanwhile are constants. What body raises goes on.
        beside: a plan for the same device in whose arena this one's intermediates and results lie, as far as there is room. A replay
        of one then overwrites the other's results, and body must read none of them. Raises ValueError while another plan is being
        recorded on this thread, and for `beside` of another device."""
    def replay(self) -> None:
        """Raises ValueError for ids, sequences or positions that have come to lie outside what they index."""
    def decode(self, token_ids: Tensor, positions: Tensor, draw_positions: Tensor, tokens: Tensor, nonfinite: Tensor,
               live: int, stop_ids: Sequence[int], count: int, seconds: float) -> list[int]:
        """Replays and feeds what was drawn, up to `count` times: Plan::decode in cpp/plan.h. token_ids and positions i32
        [n] and draw_positions i64 [n] are advanced, their first `live` rows; the others are fed the same in every step, and what
        they draw is dropped. tokens and nonfinite i32 [n] are what the recorded step made.
        Returns tokens [steps, live], flat: up to a stop id, the first step past `seconds`, or before a step that failed. Raises
        ValueError for tensors of other shapes, `live` outside 1 to n, and what `replay` refuses."""

class Pieces:
    """SentencePiece's encoders, to the id as its own library has them (cpp/pieces.h). Immutable, any thread may use it."""

    def __init__(self, texts: Sequence[bytes], scores: Sequence[float], types: Sequence[int], charsmap: bytes = b"", *,
                 unigram: bool = False, byte_fallback: bool = False, remove_extra_whitespaces: bool = False,
                 escape_whitespaces: bool = True, whitespace_as_suffix: bool = False, fuse_unknown: bool = True) -> None:
        """Of each piece its text, score (finite) and type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte);
        charsmap: NormalizerSpec.precompiled_charsmap. Raises ValueError."""
    def normalize(self, text: str, dummy_space: bool) -> bytes: ...
    def encode(self, text: str, dummy_space: bool) -> list[int]:
        """dummy_space: put a space before the text, as add_dummy_prefix says. No control tokens."""

def make_readable(memory: Tensor, threads: int) -> None:
    """Fills u8 [bytes] with words of which no two are alike and none is zero."""
def read_bandwidth(bytes: int, threads: int, memory: Optional[Tensor] = None) -> float:
    """Bytes a second that so many threads read of a block of exactly so many bytes, each a share of its own over and over:
    the best of 4 tries of 25 ms. memory: where to read, u8 and at least so large, else some is made and filled first.
    Raises ValueError below 64 bytes a thread, MemoryError for more than the machine has."""
def has_arithmetic(kind: str) -> bool:
    """Whether the current tier multiplies "bf16" by instructions for it and not in f32; true of "f32" and "int8"."""
def arithmetic_peak(kind: str, threads: int) -> float:
    """Multiplications and additions a second of "f32", "bf16" or "int8" in registers, as the current tier does them."""
def barrier_cost(threads: int) -> tuple[float, float]:
    """Seconds that so many threads take to begin and end a job together with nothing to do in it, and to go from one step
    of a replayed plan to the next."""
def device_read_bandwidth(memory: Tensor) -> float:
    """Bytes a second that the device in use reads of u8 [bytes] on it, over and over for a tenth of a second: the best of 6
    tries. Raises ValueError for memory elsewhere."""
def device_copy_bandwidth(source: Tensor, target: Tensor) -> float:
    """Bytes a second read and written by copying u8 [bytes] to another of that size, both on the device in use."""
def device_arithmetic_peak(kind: str) -> float:
    """Multiplications and additions a second of "f32", or "bf16" and "int8" by its tensor cores, of the device in use."""

def set_threads(count: int) -> None:
    """Size of the thread team, the caller included. Results do not depend on it."""
def get_threads() -> int: ...
def tiers() -> list[str]:
    """Names of the tiers this processor can run, plain first: "reference", "avx2", "avx512", "avx512bf16", "neon"."""
def current_tier() -> str:
    """The tier in use: the best one, or what GENKIT_ISA or use_tier chose."""
def isa_error() -> str:
    """Why GENKIT_ISA could not be obeyed (the plain tier is then in use), or the empty string."""
def slots() -> dict[str, str]:
    """Kernel slot -> the tier that serves it now."""
def use_tier(name: str) -> None:
    """Rebuilds the kernel table up to this tier (tests, GENKIT_ISA). Raises ValueError for one it cannot run."""
def cpu_name() -> str: ...
def cpu_features() -> list[str]: ...
def amx_state() -> tuple[bool, str]:
    """Whether AMX can be used, and in words what with or why not."""
def open_device(path: str) -> str:
    """Opens the CUDA plugin at path, the first time; "" or why no GPU can be used."""
def driver_state() -> tuple[str, str]:
    """The version of CUDA that the NVIDIA driver is for, "" where unknown, and why it cannot be used, or ""."""
def device_facts() -> dict[str, Any]:
    """Of the opened device: name, capability, processors, memory, available (bytes), driver, targets. Raises RuntimeError."""
def device_missing() -> list[str]:
    """Slots of kernels.h that the opened plugin has no kernel for: ops that need one raise RuntimeError by its name."""
def use_device(name: str) -> None:
    """This thread's ops run on "cpu" or "cuda" from now on, and new tensors lie there."""
def device_in_use() -> str: ...
