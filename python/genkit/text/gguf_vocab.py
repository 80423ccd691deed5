"""Tokenizers in GGUF's keys, both ways.

`tokenizer.huggingface.json` holds the whole tokenizer.json: what it says is what counts here, so that nothing is lost. The
other keys are llama.cpp's own: the model "gpt2" is byte-level BPE, cut into words first by one of the ways it knows by
name; "llama" is SentencePiece's BPE, which joins the neighbours whose token has the best score.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.gguf_container import ARRAY, BOOL, F32, I32, STRING, U32, Container, Key
from genkit.errors import BadFileError, UsageError

if TYPE_CHECKING:
    from genkit.text.tokenizer import Tokenizer

WHOLE = "tokenizer.huggingface.json"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Regular expressions that cut a text into words, one after the other, as tokenizer.json spells them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
_WORD = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
         r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# llama.cpp's name -> the expressions, and whether a word that is a token is taken whole
PRE: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "llama-bpe": ((_LLAMA3,), True),
    "smaug-bpe": ((_LLAMA3,), False),
    "qwen2": ((_LLAMA3.replace("{1,3}", ""),), False),
    "smollm": ((_DIGIT, _GPT2), False),
    "tekken": ((_WORD % ("", "", _DIGIT),), True),
    "gpt-4o": ((_WORD % (_SHORT, _SHORT, r"\p{N}{1,3}"),), False),
    "deepseek-coder": (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT), False),
    "deepseek-v3": ((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
                     "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                     "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), False),
    "default": ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), False),
}
# Other names of the same, in files that others made.
ALIASES = {"gpt2": "gpt-2", "phi-2": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe",
           "falcon3": "llama-bpe", "pixtral": "llama-bpe", "dbrx": "smaug-bpe", "deepseek-r1-qwen": "qwen2",
           "stablelm2": "qwen2", "hunyuan": "qwen2", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm"}


# Writing.


def vocabulary_keys(tokenizer: "Tokenizer", rows: int, eos_ids: Sequence[int] = ()) -> tuple[list[Key], list[str]]:
    """The keys, and what the user should know of them. rows: of the embedding; eos_ids: the model's, where the tokenizer
    names none. Raises UsageError for a tokenizer that llama.cpp has nothing for, BadFileError for one of another model."""
    from genkit.checkpoints.config import check_token_ids

    path = tokenizer.path
    check_token_ids(tokenizer.vocab_size - 1, rows, path)
    # The tokenizer as it works, with what tokenizer_config.json changes in it.
    whole = tokenizer.as_json()
    data = json.loads(whole)
    model = data["model"]
    byte_level = patterns_of(data["pre_tokenizer"])
    if model.get("type") != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise UsageError(f"{shown_path(path)}: a tokenizer of type {shown(model.get('type'))}, neither byte-level BPE nor with "
                         "byte_fallback; GGUF is written for these two")
    tokens, types = _tokens(data, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    notes: list[str] = []
    keys: list[Key] = []
    if byte_level:
        name = pre_of(byte_level, bool(model.get("ignore_merges")))
        if name is None:
            name = "default"
            notes.append("llama.cpp does not know this tokenizer's way to cut words (pre_tokenizer in tokenizer.json): the "
                         "file says 'default', and llama.cpp will give some texts other token ids; genkit gives the same")
        keys += [("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, name)]
    else:
        if any(step["type"] != "Metaspace" or step.get("split") for step in _flat(data["pre_tokenizer"], "pretokenizers")):
            notes.append("llama.cpp does not cut texts into words as this tokenizer does (pre_tokenizer in tokenizer.json) "
                         "and will give some texts other token ids; genkit gives the same")
        keys += [("tokenizer.ggml.model", STRING, "llama"), ("tokenizer.ggml.pre", STRING, "default"),
                 ("tokenizer.ggml.scores", ARRAY, (F32, _scores(tokens, merges))),
                 ("tokenizer.ggml.add_space_prefix", BOOL, _adds_space(data))]
    keys += [("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)), ("tokenizer.ggml.token_type", ARRAY, (I32, types))]
    if byte_level:
        keys.append(("tokenizer.ggml.merges", ARRAY, (STRING, merges)))
    for ours, theirs in SPECIAL.items():
        token = tokenizer.special_tokens.get(ours)
        token_id = None if token is None else tokenizer.id_of(token)
        if ours == "eos_token" and token_id is None and eos_ids:
            token_id = eos_ids[0]
        if token_id is not None:
            keys.append((f"tokenizer.ggml.{theirs}_token_id", U32, token_id))
    bare, full = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    keys += [("tokenizer.ggml.add_bos_token", BOOL, full[:1] == [tokenizer.bos_id] != bare[:1]),
             ("tokenizer.ggml.add_eos_token", BOOL, full[-1:] == [tokenizer.eos_id] != bare[-1:])]
    if tokenizer.chat_template is not None:
        keys.append(("tokenizer.chat_template", STRING, tokenizer.chat_template))
    return [*keys, (WHOLE, STRING, whole)], notes


def _tokens(data: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    fallback = data["model"].get("byte_fallback")
    for token, i in data["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
        if fallback and len(token) == 6 and token.startswith("<0x"):
            types[i] = BYTE
    unknown = data["model"].get("unk_token")
    for added in data["added_tokens"]:
        i, token = added["id"], added["content"]
        tokens[i] = token
        types[i] = UNKNOWN if token == unknown else CONTROL if added["special"] else USER_DEFINED
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """A token's rank among the merges, negated; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _adds_space(data: Mapping[str, Any]) -> bool:
    parts = _flat(data["pre_tokenizer"], "pretokenizers") + _flat(data["normalizer"], "normalizers")
    return any(part["type"] == "Prepend" or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")
               for part in parts)


def _flat(part: Any, inner: str) -> list[Any]:
    if part is None:
        return []
    return [one for each in part[inner] for one in _flat(each, inner)] if part["type"] == "Sequence" else [part]


def patterns_of(pre_tokenizer: Any) -> tuple[str, ...]:
    """The expressions of a byte-level pre_tokenizer; () for one that is none. An expression llama.cpp cannot have ("") stands
    for a step of another kind."""
    steps = _flat(pre_tokenizer, "pretokenizers")
    if not any(step["type"] == "ByteLevel" for step in steps):
        return ()
    found = []
    for step in steps:
        isolated = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
        if step["type"] == "ByteLevel":
            found += [""] * bool(step["add_prefix_space"]) + [_GPT2] * bool(step["use_regex"])
        elif step["type"] == "Split" and isolated and "Regex" in step["pattern"]:
            found.append(step["pattern"]["Regex"])
        elif step["type"] == "Digits" and step["individual_digits"]:
            found.append(_DIGIT)
        else:
            found.append("")
    return tuple(found)


def pre_of(patterns: tuple[str, ...], ignore_merges: bool) -> str | None:
    """llama.cpp's name of this way to cut words, or None."""
    same = [name for name, (expressions, _) in PRE.items() if expressions == patterns]
    exact = [name for name in same if PRE[name][1] == ignore_merges]
    # Where every token of the vocabulary can be reached by merges, ignore_merges changes nothing.
    return (exact or same or [None])[0]


# Reading.


def tokenizer_of(container: Container) -> tuple[bytes | None, dict[str, Any]]:
    """tokenizer.json (None where the file has no vocabulary) and what tokenizer_config.json would say. Raises BadFileError
    for one that cannot be, and for a kind that is not known here."""
    keys, where = container.keys, shown_path(container.path)
    tokens = keys.get("tokenizer.ggml.tokens")
    kind = keys.get("tokenizer.ggml.model")
    if WHOLE not in keys and (kind in ("no_vocab", "none") or (kind is None and tokens is None)):
        return None, {}
    if not isinstance(tokens, list):
        raise BadFileError(f"{where}: tokenizer.ggml.tokens is {'missing' if tokens is None else 'no list of texts'}")
    config: dict[str, Any] = {}
    for ours, theirs in SPECIAL.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        token_id = keys.get(key)
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < len(tokens):
            raise BadFileError(f"{where}: {key} is {shown(token_id)}; there are {len(tokens)} tokens")
        if tokens[token_id]:
            config[ours] = _text(tokens[token_id], where)
    template = keys.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise BadFileError(f"{where}: tokenizer.chat_template is no text")
        config["chat_template"] = template
    whole = keys.get(WHOLE)
    if whole is not None:
        if not isinstance(whole, str):
            raise BadFileError(f"{where}: {WHOLE} is no text")
        return whole.encode("utf-8"), config
    return json.dumps(_rebuilt(container, tokens, config), ensure_ascii=False).encode("utf-8"), config


def _text(token: bytes, where: str) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        raise BadFileError(f"{where}: tokenizer.ggml.tokens holds {shown(token)}, which is not UTF-8 text") from None


def _rebuilt(container: Container, raw: list[bytes], config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json out of llama.cpp's keys."""
    keys, where = container.keys, shown_path(container.path)
    kind = keys.get("tokenizer.ggml.model")
    tokens = [_text(token, where) for token in raw]
    types = keys.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL))
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise BadFileError(f"{where}: tokenizer.ggml.token_type is not one number for each of {len(tokens)} tokens")
    vocab: dict[str, int] = {}
    added = []
    for i, (token, of_type) in enumerate(zip(tokens, types.tolist())):
        if of_type == UNUSED or token in vocab:
            continue
        vocab[token] = i
        if of_type in (UNKNOWN, CONTROL, USER_DEFINED):
            added.append({"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": of_type != USER_DEFINED})
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab}
    if kind == "gpt2":
        name = keys.get("tokenizer.ggml.pre", "default")
        known = ALIASES.get(name, name) if isinstance(name, str) else None
        if known not in PRE:
            raise BadFileError(f"{where}: tokenizer.ggml.pre {shown(name)} is not known; known: "
                               f"{', '.join([*PRE, *ALIASES])}")
        patterns, model["ignore_merges"] = PRE[known]
        model["merges"] = _merges(keys.get("tokenizer.ggml.merges"), where)
        steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
                 for pattern in patterns]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        normalizer = {"type": "NFC"} if known == "qwen2" else None
        pre, decoder = {"type": "Sequence", "pretokenizers": [*steps, byte_level]}, byte_level
        adds_bos = known == "llama-bpe"
    elif kind == "llama":
        merges = _merges_by_score(vocab, keys.get("tokenizer.ggml.scores"), len(tokens), where)
        model |= {"merges": merges, "byte_fallback": True, "fuse_unk": True, "unk_token": config.get("unk_token")}
        prefix = keys.get("tokenizer.ggml.add_space_prefix", True) is not False
        pre, adds_bos = None, True
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        # As llama.cpp places it: before the text and after every special token, whether a space is there or not.
        normalizer = {"type": "Sequence", "normalizers": [*([{"type": "Prepend", "prepend": "▁"}] * prefix), replace]}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
        decoder = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                                    {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}
    else:
        raise BadFileError(f"{where}: tokenizer.ggml.model {shown(kind)} is not supported; known: gpt2, llama")
    around = [config.get(f"{name}_token") if keys.get(f"tokenizer.ggml.add_{name}_token", default) is True else None
              for name, default in (("bos", adds_bos), ("eos", False))]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": _around(*around, vocab), "decoder": decoder, "model": model}


def _merges(merges: Any, where: str) -> list[list[str]]:
    if not isinstance(merges, list):
        raise BadFileError(f"{where}: tokenizer.ggml.merges is {'missing' if merges is None else 'no list of texts'}")
    pairs = [_text(merge, where).split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2:
            raise BadFileError(f"{where}: tokenizer.ggml.merges holds {shown(' '.join(pair))}; expected two tokens")
    return pairs


def _merges_by_score(vocab: Mapping[str, int], scores: Any, count: int, where: str) -> list[list[str]]:
    """Every way to make a token of two others, the best score first."""
    if not isinstance(scores, np.ndarray) or len(scores) != count or not np.isfinite(scores).all():
        raise BadFileError(f"{where}: tokenizer.ggml.scores is not one number for each of {count} tokens")
    found = []
    values = scores.tolist()
    for token, i in vocab.items():
        if len(token) > MAX_TOKEN:
            continue
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                found.append((-values[i], cut, left, right, token))
    found.sort()
    return [[token[:cut], token[cut:]] for _, cut, _, _, token in found]


MAX_TOKEN = 128  # characters; longer ones are not cut


def _around(bos: str | None, eos: str | None, vocab: Mapping[str, int]) -> dict[str, Any] | None:
    if not (bos or eos):
        return None

    def piece(token: str | None) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": 0}}] if token else []

    text = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {"type": "TemplateProcessing", "single": [*piece(bos), text[0], *piece(eos)],
            "pair": [*piece(bos), text[0], *piece(eos), *piece(bos), text[1], *piece(eos)],
            "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]}
                               for token in (bos, eos) if token}}
