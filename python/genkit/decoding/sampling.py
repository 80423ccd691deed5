"""The next token from logits: settings, penalties, and the draw. docs/decoding.md says what each setting does."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from genkit.checks import real_number, whole_number
from genkit.errors import BadFileError, UsageError

if TYPE_CHECKING:
    import numpy

    from genkit._core import Tensor
    from genkit.checkpoints.config import GenerationDefaults

# Below this the likeliest token is all but certain; 0 says so.
MIN_TEMPERATURE = 1e-6
# The core's numbers are f32. This keeps one token, as anything below it would.
MIN_TOP_P = 1e-30


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen. The defaults are greedy: the likeliest token, the lowest id among equals."""

    temperature: float = 0.0  # 0 (greedy), or from 1e-6 to 100
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # in (0, 1], 1 is off
    min_p: float = 0.0  # in [0, 1], 0 is off
    repeat_penalty: float = 1.0  # from 1e-6 to 100, 1 is off
    repeat_last_n: int = -1  # tokens the three penalties look back at; -1 is all of them, 0 is none
    presence_penalty: float = 0.0  # in [-2, 2]
    frequency_penalty: float = 0.0  # in [-2, 2]
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit; -inf bans it
    seed: int | None = None  # in [0, 2**64), None draws one

    def validated(self, vocab_size: int | None = None) -> SamplingSettings:
        """The same settings with plain numbers. Raises UsageError with option, value and range."""
        if self.temperature != 0 or isinstance(self.temperature, bool):
            temperature = real_number("temperature", self.temperature, MIN_TEMPERATURE, 100, "0 (greedy) or a number")
        else:
            temperature = 0.0
        return SamplingSettings(
            temperature=temperature,
            top_k=whole_number("top_k", self.top_k, 0, 2**31 - 1),
            top_p=real_number("top_p", self.top_p, 0, 1, above=True),
            min_p=real_number("min_p", self.min_p, 0, 1),
            repeat_penalty=real_number("repeat_penalty", self.repeat_penalty, 1e-6, 100),
            repeat_last_n=whole_number("repeat_last_n", self.repeat_last_n, -1, 2**31 - 1),
            presence_penalty=real_number("presence_penalty", self.presence_penalty, -2, 2),
            frequency_penalty=real_number("frequency_penalty", self.frequency_penalty, -2, 2),
            logit_bias=_bias(self.logit_bias, vocab_size),
            seed=None if self.seed is None else whole_number("seed", self.seed, 0, 2**64 - 1),
        )

    def as_dict(self) -> dict[str, Any]:
        """For reports: every setting, the bias with ids as they are."""
        return {**asdict(self), "logit_bias": dict(self.logit_bias)}


def resolve(defaults: GenerationDefaults | None = None, **given: Any) -> SamplingSettings:
    """Settings from what the caller gave (fields of SamplingSettings; None is not given) over the model's own
    generation_config.json.

    The file's temperature (1 where it gives none), top_k, top_p and min_p count where it says do_sample, its
    repetition_penalty always. Otherwise greedy. Not validated yet: Sampler does that.
    """
    settings = SamplingSettings()
    if defaults is not None:
        own: dict[str, Any] = {"repeat_penalty": defaults.repetition_penalty}
        if defaults.do_sample:
            own["temperature"] = 1.0 if defaults.temperature is None else defaults.temperature
            own.update(top_k=defaults.top_k, top_p=defaults.top_p, min_p=defaults.min_p)
        settings = replace(settings, **{name: value for name, value in own.items() if value is not None})
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def draw_seed() -> int:
    """A seed from the system's randomness, short enough to be typed again."""
    return int.from_bytes(os.urandom(4), "little")


class History:
    """The tokens of one sequence that the penalties look at: distinct ids, how often each is in the window, and how
    often generated. Adding a token costs the same however long the history is."""

    def __init__(self, prompt: Sequence[int], window: int = -1) -> None:
        self._window = window
        self._slots: dict[int, int] = {}  # id -> its place in the next three
        self._ids, self._seen, self._generated = array("i"), array("i"), array("i")
        # As RememberArgs' recent and next: 2 * token + whether it was generated, in a ring once the window is full.
        self._recent, self._next = array("i"), 0
        for token in prompt[-window:] if window > 0 else prompt:
            self._add(token, generated=False)

    def append(self, token: int) -> None:
        """A token was generated."""
        self._add(token, generated=True)

    def __len__(self) -> int:
        """Distinct ids."""
        return len(self._ids)

    def entries(self) -> numpy.ndarray:
        """int32 [3, distinct]: ids, times in the window, times generated in the window."""
        import numpy as np

        return np.array([self._ids, self._seen, self._generated], np.int32)

    def recent(self) -> tuple[numpy.ndarray, int]:
        """Of a window: int32 [up to window], 2 * token + whether it was generated, and where in a ring of the window's size
        the next token comes."""
        import numpy as np

        return np.array(self._recent, np.int32), self._next

    def _add(self, token: int, generated: bool) -> None:
        if self._window == 0:
            return
        if self._window > 0:
            word = 2 * token + generated
            if len(self._recent) < self._window:
                self._recent.append(word)
            else:
                left, self._recent[self._next] = self._recent[self._next], word
                self._forget(left >> 1, left & 1)
            self._next = (self._next + 1) % self._window
        slot = self._slots.setdefault(token, len(self._ids))
        if slot == len(self._ids):
            self._ids.append(token)
            self._seen.append(0)
            self._generated.append(0)
        self._seen[slot] += 1
        self._generated[slot] += generated

    def _forget(self, token: int, generated: int) -> None:
        slot = self._slots[token]
        self._seen[slot] -= 1
        self._generated[slot] -= generated
        if self._seen[slot] == 0:
            # The last entry moves into the free place.
            self._slots[self._ids[-1]] = slot
            del self._slots[token]
            for column in (self._ids, self._seen, self._generated):
                column[slot] = column[-1]
                column.pop()


class Tables:
    """Histories of so many rows where the core reads and continues them (HistoryTable and RememberArgs in sampling.h), on the
    device in use."""

    def __init__(self, rows: int, capacity: int, window: int = 0) -> None:
        """capacity: distinct ids of a row, those that have left the window included. window: 0 where none leaves."""
        from genkit import _core

        self.capacity = capacity
        self.entries = _core.Tensor([rows, 3, capacity], "i32")
        self.lengths = _core.Tensor.zeros([rows], "i32")
        self.recent = _core.Tensor([rows, window], "i32")
        self.next = _core.Tensor.zeros([rows], "i32")

    def write(self, histories: Sequence[History | None], count: int) -> None:
        """What the histories of the first `count` rows hold; nothing for others. Raises ValueError where one is missing."""
        import numpy as np

        given = [history for history in histories if history is not None]
        if len(given) != count:
            raise ValueError(f"{count} rows of logits, {len(given)} histories")
        rows, window = self.recent.shape
        entries, lengths = np.empty(self.entries.shape, np.int32), np.zeros(rows, np.int32)
        recent, after = np.full((rows, window), -1, np.int32), np.zeros(rows, np.int32)
        for row, history in enumerate(given):
            lengths[row] = len(history)
            entries[row, :, : len(history)] = history.entries()
            if window:
                words, after[row] = history.recent()
                recent[row, : len(words)] = words
        for tensor, array_ in ((self.entries, entries), (self.lengths, lengths), (self.recent, recent), (self.next, after)):
            tensor.write(array_)


class Sampler:
    """Chooses tokens: bias, penalties, then temperature, top-k, top-p, min-p and a draw in the compiled core.

    It keeps no state between tokens. The random number of a token is a function of (seed, sequence, position), so the
    token is the same whatever else is in the batch, with any number of threads.
    """

    def __init__(self, settings: SamplingSettings, vocab_size: int) -> None:
        """Raises UsageError for settings out of range. With no seed one is drawn; `seed` tells it."""
        import numpy as np

        self.settings = settings.validated(vocab_size)
        self.seed = draw_seed() if self.settings.seed is None else self.settings.seed
        self._bias_ids = np.fromiter(self.settings.logit_bias.keys(), np.int32)
        self._bias_values = np.fromiter(self.settings.logit_bias.values(), np.float32)
        self._bias: tuple[Tensor, Tensor] | None = None  # the same on the device of the logits
        s = self.settings
        penalized = s.repeat_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
        self.penalizes = penalized and s.repeat_last_n != 0

    def history(self, prompt: Sequence[int]) -> History | None:
        """What `next` wants for a sequence that begins with this prompt; None when no penalty is on."""
        return History(prompt, self.settings.repeat_last_n) if self.penalizes else None

    def next(
        self,
        logits: Tensor,
        histories: Sequence[History | None],
        sequences: Sequence[int],
        positions: Sequence[int],
    ) -> list[int]:
        """One token a row, appended to the row's history.

        logits: f32 [rows, vocab], changed in place by bias and penalties. sequences: the number of each row's
        sequence. positions: where in its sequence the drawn token will stand (prompt included).
        Raises BadFileError for NaN or infinity in the logits, UsageError when the bias bans every token.
        """
        import numpy as np

        from genkit import _core

        if self.adjusts:
            check_finite(logits, positions)
            self.adjust_(logits, histories)
        tokens = self.draw(
            logits,
            _core.Tensor.from_numpy(np.asarray(sequences, np.int64)),
            _core.Tensor.from_numpy(np.asarray(positions, np.int64)),
        ).numpy()
        if (tokens < 0).any():
            if not self.adjusts:
                check_finite(logits, positions)
            position = positions[int((tokens < 0).argmax())]
            raise UsageError(f"logit_bias: no token is left at position {position}: all are banned, or one overflows")
        chosen = tokens.tolist()
        for token, history in zip(chosen, histories):
            if history is not None:
                history.append(token)
        return chosen

    @property
    def adjusts(self) -> bool:
        """Whether bias or penalties touch the logits before the draw."""
        return bool(len(self._bias_ids)) or self.penalizes

    def draw(self, logits: Tensor, sequences: Tensor, positions: Tensor) -> Tensor:
        """One token a row, i32 [rows], from logits as they are. Below 0 where none can be drawn: all are banned or one is
        NaN or infinite, where nothing adjusts them also -infinity. sequences, positions: i64 [rows], as in `next`. A core
        op only, so it can be recorded."""
        from genkit import _core

        return _core.sample(logits, sequences, positions, *self._options(), finite_only=not self.adjusts)

    def tables(self, rows: int, capacity: int, longest: int) -> Tables | None:
        """For `draw_step` of sequences of up to `longest` tokens; None when no penalty is on."""
        window = self.settings.repeat_last_n
        return Tables(rows, capacity, window if 0 < window < longest else 0) if self.penalizes else None

    def draw_step(self, logits: Tensor, sequences: Tensor, positions: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        """For a step of a plan: `draw` after bias and penalties, in place, which `tables` then hold as well, and how many logits
        of each row were not finite before them, i32 [rows]."""
        from genkit import _core

        if not self.adjusts:
            return _core.sample_counted(logits, sequences, positions, *self._options(), finite_only=True)
        counts = _core.nonfinite(logits)
        self._adjust(logits, tables)
        tokens = self.draw(logits, sequences, positions)
        if tables is not None:
            _core.remember_(tokens, tables.entries, tables.lengths, tables.recent, tables.next)
        return tokens, counts

    def _options(self) -> tuple[float, int, float, float, int]:
        s = self.settings
        return s.temperature, s.top_k, max(s.top_p, MIN_TOP_P), s.min_p, self.seed

    def adjust_(self, logits: Tensor, histories: Sequence[History | None]) -> None:
        """Bias, then penalties, in place on f32 [rows, vocab]."""
        tables = None
        if self.penalizes:
            tables = Tables(logits.shape[0], max((len(history) for history in histories if history is not None), default=0))
            tables.write(histories, logits.shape[0])
        self._adjust(logits, tables)

    def _adjust(self, logits: Tensor, tables: Tables | None) -> None:
        from genkit import _core

        if len(self._bias_ids):
            if self._bias is None or self._bias[0].device != logits.device:
                self._bias = _core.Tensor.from_numpy(self._bias_ids), _core.Tensor.from_numpy(self._bias_values)
            _core.bias_(logits, *self._bias)
        if tables is not None:
            s = self.settings
            _core.penalize_(logits, tables.entries, tables.lengths, s.repeat_penalty, s.presence_penalty, s.frequency_penalty)


def check_finite(logits: Tensor, positions: Sequence[int]) -> None:
    """Raises BadFileError when the model's own logits hold NaN or infinity: such a token would be noise."""
    from genkit import _core

    counts = _core.nonfinite(logits).numpy()
    if counts.any():
        row = int(counts.argmax())
        raise BadFileError(
            f"the logits of the token at position {positions[row]} are not finite ({int(counts[row])} of "
            f"{logits.shape[1]} are NaN or infinity): the model's weights are damaged or overflow"
        )


def _bias(bias: Any, vocab_size: int | None) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit_bias: {bias!r} is not a mapping of token ids to numbers")
    result = {}
    for token, value in bias.items():
        token = whole_number("logit_bias: token id", token, 0, (vocab_size or 2**31) - 1)
        if not (isinstance(value, (int, float)) and value == -math.inf):
            value = real_number(f"logit_bias of token {token}", value, -1e9, 1e9, "-inf (never) or a number")
        result[token] = float(value)
    return result
