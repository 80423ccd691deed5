"""JSON beside the weights (config.json, generation_config.json): read with suspicion, given out range-checked.

Both spellings of today are understood: transformers 4 (`rope_theta`, `rope_scaling`) and transformers 5
(`rope_parameters`). `torch_dtype` and `dtype` are not looked at: the weights' own headers decide.
"""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from genkit.checkpoints.files import read_small, shown, shown_path
from genkit.errors import BadFileError

SMALL_FILE = 16 << 20  # bytes of a config-like file
LARGE_FILE = 100 << 20  # bytes of tokenizer.json and the weights' index
MAX_DEPTH = 64  # nested objects and lists
MAX_DIGITS = 100  # of an integer; tokenizer_config.json writes "no limit" as 10**30

REQUIRED: Any = object()  # marks a key that has no default

TOKEN_ID_MAX = 2**31 - 1


class _Unreadable:
    """Stands for a number JSON or Python cannot hold until the key it belongs to is known."""

    def __init__(self, words: str) -> None:
        self.words = words


class _DuplicateKey(Exception):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(f"the key {shown(key)} is there twice")
            seen.add(key)
    return result


def _integer(digits: str) -> Any:
    if len(digits) > MAX_DIGITS:
        return _Unreadable(f"a number of {len(digits.lstrip('-'))} digits")
    return int(digits)


def _float(text: str) -> Any:
    value = float(text)
    return value if math.isfinite(value) else _Unreadable(f"{text[:20]}, beyond the range of a float")


def _find_unreadable(value: Any, depth: int = 0) -> tuple[str, Any] | None:
    """Path and value of the first unreadable number, or of nesting beyond MAX_DEPTH."""
    if isinstance(value, _Unreadable):
        return "", value
    if isinstance(value, (dict, list)):
        if depth >= MAX_DEPTH:
            return "", _Unreadable(f"nested more than {MAX_DEPTH} deep")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, (dict, list, _Unreadable)):
                found = _find_unreadable(item, depth + 1)
                if found:
                    step = f"[{key}]" if isinstance(value, list) else f".{_plain(key)}"
                    return step + found[0], found[1]
    return None


def _plain(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else shown(key, 60)


def parse_json(text: bytes, where: str, *, constants: bool = False) -> dict[str, Any]:
    """A JSON object. `where` begins every message. Raises BadFileError.

    Refused: anything but UTF-8, a key given twice, integers of more than 100 digits, nesting beyond 64, and (unless
    `constants`) NaN, Infinity and numbers beyond a float, none of which JSON has.
    """
    try:
        value = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_no_duplicates,
            parse_int=_integer,
            parse_float=float if constants else _float,
            parse_constant=float if constants else _Unreadable,
        )
    except UnicodeDecodeError as error:
        raise BadFileError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except _DuplicateKey as error:
        raise BadFileError(f"{where}: {error}") from None
    except RecursionError:
        raise BadFileError(f"{where}: nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        what = "empty" if not text.strip() else f"broken JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        raise BadFileError(f"{where}: {what}") from None
    if not isinstance(value, dict):
        raise BadFileError(f"{where}: holds {shown(value, 40)}; expected a JSON object")
    found = _find_unreadable(value)
    if found:
        raise BadFileError(f"{where}: {found[0].lstrip('.')} is {found[1].words}, which is not allowed")
    return value


def read_json(path: Path, limit: int = SMALL_FILE, *, constants: bool = False) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes. See parse_json for what is refused. Raises BadFileError."""
    return parse_json(read_small(path, limit), shown_path(path), constants=constants)


class Fields:
    """A JSON object with range-checked getters.

    null counts as missing, as transformers writes it. Every error is a BadFileError that names the file, the key, the
    value and what is allowed.
    """

    def __init__(self, path: Path, raw: dict[str, Any], prefix: str = "") -> None:
        self.path = path
        self.raw = raw
        self._prefix = prefix  # "rope_scaling." inside that object

    def filled(self, **defaults: Any) -> "Fields":
        """The same with values for keys the file does not have."""
        return Fields(self.path, defaults | self.raw, self._prefix)

    def only(self, **values: Any) -> "Fields":
        """Other values in place of these, of the same file."""
        return Fields(self.path, values, self._prefix)

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def error(self, key: str, expected: str) -> BadFileError:
        """The error for a key that holds something else than expected (words such as "a list of integers")."""
        value = self.raw.get(key, REQUIRED)
        is_what = "is missing" if value is REQUIRED else f"is {shown(value)}"
        return BadFileError(f"{shown_path(self.path)}: {self._prefix}{key} {is_what}; expected {expected}")

    def _get(self, key: str, default: Any, expected: str) -> tuple[Any, bool]:
        """The value and whether it is the default."""
        value = self.raw.get(key)
        if value is not None:
            return value, False
        if default is REQUIRED:
            raise self.error(key, expected)
        return default, True

    def optional(self, key: str) -> Any:
        """What the file holds, unchecked, or None."""
        return self.raw.get(key)

    def integer(self, key: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        """An integer in [low, high]; 4.0 counts as 4, true does not count as 1."""
        expected = f"an integer from {low} to {high}"
        value, is_default = self._get(key, default, expected)
        if is_default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, expected)
        return value

    def number(self, key: str, low: float, high: float, default: Any = REQUIRED, *, above: bool = False) -> Any:
        """A finite float in [low, high], or in (low, high] with `above`."""
        expected = f"a number above {low:g} and at most {high:g}" if above else f"a number from {low:g} to {high:g}"
        value, is_default = self._get(key, default, expected)
        if is_default:
            return value
        # Compared before it is converted: an integer may be too large for a float. NaN fails every comparison.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high \
                or (above and value == low):
            raise self.error(key, expected)
        return float(value)

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        value, is_default = self._get(key, default, "true or false")
        if not is_default and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def string(self, key: str, choices: Sequence[str] | None = None, default: Any = REQUIRED) -> Any:
        expected = "one of " + ", ".join(choices) if choices else "a string"
        value, is_default = self._get(key, default, expected)
        if not is_default and (not isinstance(value, str) or (choices is not None and value not in choices)):
            raise self.error(key, expected)
        return value

    def integers(self, key: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        """A list of integers, each in [low, high]."""
        expected = f"a list of integers from {low} to {high}"
        value, is_default = self._get(key, default, expected)
        if is_default:
            return value
        if not isinstance(value, list) or not all(
                isinstance(item, int) and not isinstance(item, bool) and low <= item <= high for item in value):
            raise self.error(key, expected)
        return list(value)

    def numbers(self, key: str, low: float, high: float) -> tuple[float, ...]:
        """A list of finite numbers, each in (low, high]."""
        expected = f"a list of numbers above {low:g} and at most {high:g}"
        value, _ = self._get(key, REQUIRED, expected)
        if not isinstance(value, list) or not all(
                isinstance(item, (int, float)) and not isinstance(item, bool) and low < item <= high for item in value):
            raise self.error(key, expected)
        return tuple(map(float, value))

    def token_ids(self, key: str, default: Any = ()) -> tuple[int, ...]:
        """One token id or a list of them, as a tuple without repeats."""
        expected = f"a token id from 0 to {TOKEN_ID_MAX}, or a list of them"
        value, is_default = self._get(key, default, expected)
        if is_default:
            return value
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= TOKEN_ID_MAX
                   for item in items):
            raise self.error(key, expected)
        return tuple(dict.fromkeys(items))

    def object(self, key: str) -> "Fields | None":
        """An object inside this one, or None where there is none."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(self.path, value, f"{self._prefix}{key}.")

    @property
    def model_type(self) -> str:
        return self.string("model_type")


def read_config(folder: Path) -> Fields:
    """config.json of a model folder. Raises BadFileError.

    Infinity and NaN are let through in keys nobody asks for (some architectures write them); every getter refuses them.
    """
    path = Path(folder) / "config.json"
    return Fields(path, read_json(path, constants=True))


ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")


def rope_parameters(fields: Fields, default_theta: float = 10000.0, default_partial: float = 1.0,
                    theta_key: str = "rope_theta", partial_key: str = "partial_rotary_factor") -> dict[str, Any]:
    """Rotary embedding settings from either spelling, checked, in one flat dict.

    theta_key and partial_key: what the architecture calls these two at the top of the file.

    Always there: rope_type (one of ROPE_TYPES, "su" as "longrope"), rope_theta, partial_rotary_factor.
    By type: factor (all but default); short_factor, long_factor (longrope); original_max_position_embeddings (yarn, llama3, longrope: from the top of
    the file, the object or max_position_embeddings, the first that has it, as transformers 5 computes); low_freq_factor,
    high_freq_factor (llama3); attention_factor (yarn, longrope), beta_fast, beta_slow, mscale, mscale_all_dim, truncate
    (yarn, where the file has them).
    Raises BadFileError.
    """
    # An empty object counts as none, and rope_scaling goes first when both are there: transformers 5's rule.
    name = "rope_scaling" if fields.optional("rope_scaling") not in (None, {}) else "rope_parameters"
    inner = fields.object(name) or Fields(fields.path, {}, f"{name}.")
    layered = [key for key, value in inner.raw.items() if isinstance(value, dict)]
    if layered:
        raise inner.error(layered[0], "one set of values for all layers (one for each kind is not supported)")

    def of_both(key: str, top: str, high: float, low: float, default: float) -> float:
        source, key = (inner, key) if key in inner else (fields, top)
        return source.number(key, low, high, default, above=True)

    result: dict[str, Any] = {
        "rope_type": inner.string("rope_type" if "rope_type" in inner else "type", ROPE_TYPES, "default"),
        "rope_theta": of_both("rope_theta", theta_key, 1e15, 1.0, default_theta),
        "partial_rotary_factor": of_both("partial_rotary_factor", partial_key, 1.0, 0.0, default_partial),
    }
    if result["rope_type"] == "su":
        result["rope_type"] = "longrope"
    kind = result["rope_type"]
    if kind == "default":
        return result
    if kind in ("yarn", "llama3", "longrope"):
        source = next((s for s in (fields, inner) if "original_max_position_embeddings" in s), None)
        longest = "max_position_embeddings"
        least = 2 if kind == "longrope" else 1  # which divides by its logarithm
        result["original_max_position_embeddings"] = (
            source.integer("original_max_position_embeddings", least, 2**31 - 1) if source
            else fields.integer(longest, least, 2**31 - 1))
    if "factor" not in inner and (kind == "longrope" or kind == "yarn" and "factor" in inner.raw):
        # the ratio of the two lengths; yarn says so by null
        result["factor"] = fields.integer("max_position_embeddings", 1, 2**31 - 1) / result[
            "original_max_position_embeddings"]
    else:
        result["factor"] = inner.number("factor", 0.0, 1e6, above=True)
    if kind == "llama3":
        result["low_freq_factor"] = inner.number("low_freq_factor", 0.0, 1e6, above=True)
        result["high_freq_factor"] = inner.number("high_freq_factor", 0.0, 1e6, above=True)
        if result["high_freq_factor"] <= result["low_freq_factor"]:
            raise inner.error("high_freq_factor", f"more than low_freq_factor, {result['low_freq_factor']:g}")
    if kind == "longrope":
        result["short_factor"] = inner.numbers("short_factor", 1e-3, 1e6)
        result["long_factor"] = inner.numbers("long_factor", 1e-3, 1e6)
        if "attention_factor" in inner:
            result["attention_factor"] = inner.number("attention_factor", 0.0, 1e6)
    if kind == "yarn":
        for key in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if key in inner:
                result[key] = inner.number(key, 0.0, 1e6)
        if "truncate" in inner:
            result["truncate"] = inner.boolean("truncate")
    return result


@dataclass(frozen=True)
class GenerationDefaults:
    """What the model's makers want used where the caller says nothing. None: the file says nothing either."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def generation_defaults(folder: Path, fields: Fields, values: dict[str, Any] | None = None) -> GenerationDefaults:
    """generation_config.json (or `values` in its place) where there is one, token ids from config.json where it has none.
    Raises BadFileError.

    Old folders keep the sampling settings in config.json; those are left alone, as transformers 5 does.
    """
    path = Path(folder) / "generation_config.json"
    own = Fields(path, read_json(path)) if os.path.lexists(path) else Fields(folder, values or {})

    def token(key: str) -> int | None:
        source = own if key in own else fields
        # -1 stands for "none" in some old folders
        return None if source.optional(key) == -1 else source.integer(key, 0, TOKEN_ID_MAX, None)

    temperature = own.number("temperature", 0.0, 100.0, None)
    if temperature and temperature < 1e-6:  # what a sampler can divide by
        raise own.error("temperature", "0 (greedy) or a number from 1e-06 to 100")
    top_k = own.integer("top_k", -1, 2**31 - 1, None)  # -1 is how vLLM's users write off
    return GenerationDefaults(
        eos_token_ids=(own if "eos_token_id" in own else fields).token_ids("eos_token_id"),
        bos_token_id=token("bos_token_id"),
        pad_token_id=token("pad_token_id"),
        do_sample=own.boolean("do_sample", False),
        temperature=temperature,
        top_k=None if top_k is None else max(top_k, 0),
        top_p=own.number("top_p", 0.0, 1.0, None, above=True),
        min_p=own.number("min_p", 0.0, 1.0, None),
        repetition_penalty=own.number("repetition_penalty", 0.0, 100.0, None, above=True),
    )


def check_token_ids(largest: int, vocab_size: int, tokenizer: Path) -> None:
    """Raises BadFileError when the tokenizer makes ids the embedding has no row for. `largest`: its largest id."""
    if largest >= vocab_size:
        raise BadFileError(
            f"{shown_path(tokenizer)}: has token id {largest}, but the embedding has {vocab_size} rows "
            f"(vocab_size in config.json); tokenizer and weights are not of one model")
