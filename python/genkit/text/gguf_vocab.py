"""Tokenizers in GGUF's keys, both ways.

`tokenizer.huggingface.json` holds the whole tokenizer.json: what it says is what counts here, so that nothing is lost. The
other keys are llama.cpp's own: the model "gpt2" is byte-level BPE, cut into words first by one of the ways it knows by
name (gguf_pre.py); "llama" is SentencePiece's BPE, which joins the neighbours whose token has the best score; "t5" is its
unigram; "bert" is WordPiece. The two of SentencePiece become a tokenizer.model, which the core's own encoders read.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from genkit.checkpoints.files import shown, shown_path
from genkit.checkpoints.gguf_container import ARRAY, BOOL, F32, I32, STRING, U32, Container, Key
from genkit.errors import BadFileError, UsageError
from genkit.text.gguf_pre import ALIASES, BEGINS, COMPOSES, PRE
from genkit.text.sentencepiece import (BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, SentencePiece)

if TYPE_CHECKING:
    from genkit.text.tokenizer import Tokenizer

WHOLE = "tokenizer.huggingface.json"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
U8 = 0
# What llama.cpp takes for the end of a turn where no key says it, the first that there is.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
             "<｜end▁of▁sentence｜>", "<end_of_utterance>")
MESSAGE_ENDS = ("<|eom_id|>",)

_GPT2 = PRE["gpt-2"][0][0]
_DIGIT = PRE["smollm"][0][0]

# Writing.


def vocabulary_keys(tokenizer: "Tokenizer", rows: int, eos_ids: Sequence[int] = ()) -> tuple[list[Key], list[str]]:
    """The keys, and what the user should know of them. rows: of the embedding; eos_ids: the model's, where the tokenizer
    names none. Raises UsageError for a tokenizer that llama.cpp has nothing for, BadFileError for one of another model."""
    from genkit.checkpoints.config import check_token_ids

    path = tokenizer.path
    check_token_ids(tokenizer.vocab_size - 1, rows, path)
    if tokenizer.pieces is not None:
        return _piece_keys(tokenizer, tokenizer.pieces, rows) + _around_keys(tokenizer, eos_ids), []
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
    return [*keys, *_around_keys(tokenizer, eos_ids), (WHOLE, STRING, whole)], notes


def _around_keys(tokenizer: "Tokenizer", eos_ids: Sequence[int]) -> list[Key]:
    """Special tokens, what stands around a text, chat templates."""
    keys: list[Key] = []
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
    templates = dict(tokenizer.chat_templates)
    if "default" in templates:
        keys.append(("tokenizer.chat_template", STRING, templates.pop("default")))
    if templates:
        keys.append(("tokenizer.chat_templates", ARRAY, (STRING, list(templates))))
        keys += [(f"tokenizer.chat_template.{name}", STRING, template) for name, template in templates.items()]
    return keys


def _piece_keys(tokenizer: "Tokenizer", pieces: SentencePiece, rows: int) -> list[Key]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    scores = [-1000.0] * rows
    count = len(pieces.texts)
    tokens[:count], types[:count], scores[:count] = pieces.texts, pieces.types, pieces.scores
    for i, token, special in tokenizer.added_tokens():
        tokens[i] = token
        types[i] = CONTROL if special and types[i] != UNKNOWN else types[i] if i < count else USER_DEFINED
    tokens = [token.replace(SPACE, " ") if of_type == USER_DEFINED else token for token, of_type in zip(tokens, types)]
    keys: list[Key] = [("tokenizer.ggml.model", STRING, "t5" if pieces.unigram else "llama"),
                       ("tokenizer.ggml.pre", STRING, "default"), ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
                       ("tokenizer.ggml.scores", ARRAY, (F32, scores)), ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
                       ("tokenizer.ggml.add_space_prefix", BOOL, pieces.add_dummy_prefix),
                       ("tokenizer.ggml.remove_extra_whitespaces", BOOL, pieces.remove_extra_whitespaces)]
    if pieces.charsmap:
        keys.append(("tokenizer.ggml.precompiled_charsmap", ARRAY, (U8, np.frombuffer(pieces.charsmap, np.uint8))))
    return keys


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
    templates = _templates(keys, where)
    if templates:
        config["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    whole = keys.get(WHOLE)
    if whole is not None:
        if not isinstance(whole, str):
            raise BadFileError(f"{where}: {WHOLE} is no text")
        return whole.encode("utf-8"), config
    if kind in ("llama", "t5"):
        pieces, more = _pieces(container, tokens, config, kind == "t5")
        return pieces.to_bytes(), config | more
    return json.dumps(_rebuilt(container, tokens, config), ensure_ascii=False).encode("utf-8"), config


def stop_ids(container: Container) -> list[int]:
    """What ends a text, a turn or a message: by key, or by name as llama.cpp looks for it. Ids that cannot be are left out."""
    tokens = container.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        tokens = []
    found: list[int] = []
    for name, names in (("eos", ()), ("eot", TURN_ENDS), ("eom", MESSAGE_ENDS)):
        token_id = container.keys.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None and names and tokens:
            wanted = {name.encode() for name in names}
            places = {token: i for i, token in enumerate(tokens) if token in wanted}
            token_id = next((places[token.encode()] for token in names if token.encode() in places), None)
        if isinstance(token_id, (int, np.integer)) and not isinstance(token_id, bool) and 0 <= token_id and token_id not in found:
            found.append(int(token_id))
    return found


def _templates(keys: Mapping[str, Any], where: str) -> dict[str, str]:
    found = {}
    names = keys.get("tokenizer.chat_templates")
    for name in ["default", *(name.decode("utf-8", "replace") for name in (names if isinstance(names, list) else []))]:
        key = "tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"
        template = keys.get(key)
        if template is None:
            continue
        if not isinstance(template, str):
            raise BadFileError(f"{where}: {key} is no text")
        found[name] = template
    return found if "default" in found else {}


def _pieces(container: Container, raw: list[bytes], config: Mapping[str, Any], unigram: bool) -> tuple[SentencePiece, dict[str, Any]]:
    """SentencePiece's model, and what tokenizer_config.json would say beside."""
    keys, where = container.keys, shown_path(container.path)
    tokens = [_text(token, where) or f"[EMPTY_{i}]" for i, token in enumerate(raw)]
    scores = _numbers(keys, "scores", len(tokens), where)
    if not np.isfinite(scores).all():
        raise BadFileError(f"{where}: tokenizer.ggml.scores holds what is no number")
    types = _types(keys, tokens, where)
    if "tokenizer.ggml.token_type" not in keys:
        types = [BYTE if len(token) == 6 and token.startswith("<0x") else NORMAL for token in tokens]
    if UNKNOWN in types:
        first = types.index(UNKNOWN)
        types = [CONTROL if of_type == UNKNOWN and i != first else of_type for i, of_type in enumerate(types)]
    tokens = [token.replace(" ", SPACE) if of_type == USER_DEFINED else token for token, of_type in zip(tokens, types)]
    charsmap = keys.get("tokenizer.ggml.precompiled_charsmap", np.zeros(0, np.uint8))
    if not isinstance(charsmap, np.ndarray) or charsmap.dtype.itemsize != 1:
        raise BadFileError(f"{where}: tokenizer.ggml.precompiled_charsmap is no list of bytes")

    def flag(name: str, default: bool) -> bool:
        value = keys.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise BadFileError(f"{where}: tokenizer.ggml.{name} is {shown(value)}; expected true or false")
        return value

    special = {name: keys[key] for name, key in (("unk", "tokenizer.ggml.unknown_token_id"), ("bos", "tokenizer.ggml.bos_token_id"),
                                                 ("eos", "tokenizer.ggml.eos_token_id")) if key in keys}
    pieces = SentencePiece(container.path, tokens, scores.tolist(), types, special, unigram, BYTE in types, charsmap.tobytes(),
                           flag("add_space_prefix", not unigram), flag("remove_extra_whitespaces", False))
    # As llama.cpp places the space: before the text and after every special token.
    more = {"legacy": True, "add_bos_token": flag("add_bos_token", not unigram), "add_eos_token": flag("add_eos_token", unigram),
            "tokenizer_class": "T5Tokenizer" if unigram else "LlamaTokenizer"}
    return pieces, more


def _numbers(keys: Mapping[str, Any], name: str, count: int, where: str) -> np.ndarray:
    found = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, np.ndarray) or len(found) != count:
        raise BadFileError(f"{where}: tokenizer.ggml.{name} is not one number for each of {count} tokens")
    return found


def _types(keys: Mapping[str, Any], tokens: Sequence[str], where: str) -> list[int]:
    if "tokenizer.ggml.token_type" not in keys:
        return [NORMAL] * len(tokens)
    types = [int(of_type) or NORMAL for of_type in _numbers(keys, "token_type", len(tokens), where)]  # 0 is undefined
    wrong = next((of_type for of_type in types if not NORMAL <= of_type <= BYTE), None)
    if wrong is not None:
        raise BadFileError(f"{where}: tokenizer.ggml.token_type holds {wrong}; expected {NORMAL} to {BYTE}")
    return types


def _text(token: bytes, where: str) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        raise BadFileError(f"{where}: tokenizer.ggml.tokens holds {shown(token)}, which is not UTF-8 text") from None


def _rebuilt(container: Container, raw: list[bytes], config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json out of llama.cpp's keys."""
    keys, where = container.keys, shown_path(container.path)
    kind = keys.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "bert"):
        raise BadFileError(f"{where}: tokenizer.ggml.model {shown(kind)} is not supported; known: gpt2, llama, t5, bert")
    tokens = [_text(token, where) for token in raw]
    ends = {tokens[i] for i in stop_ids(container) if i < len(tokens)}
    vocab: dict[str, int] = {}
    added = []
    for i, (token, of_type) in enumerate(zip(tokens, _types(keys, tokens, where))):
        control = of_type in (UNKNOWN, CONTROL) or (token in ends and of_type == USER_DEFINED)
        if kind == "bert" and not control and of_type == NORMAL:
            # A word's first piece is marked here, in tokenizer.json the others are.
            token = token[1:] if token.startswith(SPACE) else token if token[:1] + token[-1:] == "[]" else "##" + token
        if of_type == UNUSED or token in vocab or not token:
            continue
        vocab[token] = i
        if control or of_type == USER_DEFINED:
            added.append({"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": control})
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    if kind == "bert":
        return whole | _word_pieces(keys, vocab, tokens, where)
    name = keys.get("tokenizer.ggml.pre", "default")
    known = ALIASES.get(name, name) if isinstance(name, str) else None
    if known not in PRE:
        raise BadFileError(f"{where}: tokenizer.ggml.pre {shown(name)} is not known; known: {', '.join(PRE)}")
    patterns, ignore_merges = PRE[known]
    steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    around = [config.get(f"{name}_token") if keys.get(f"tokenizer.ggml.add_{name}_token", default) is True else None
              for name, default in (("bos", known in BEGINS), ("eos", False))]
    return whole | {
        "normalizer": {"type": "NFC"} if name in COMPOSES else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "post_processor": _around(*around, vocab), "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges, "vocab": vocab,
                  "merges": _merges(keys.get("tokenizer.ggml.merges"), where)}}


def _word_pieces(keys: Mapping[str, Any], vocab: Mapping[str, int], tokens: Sequence[str], where: str) -> dict[str, Any]:
    lower = keys.get("tokenizer.ggml.normalizer.lowercase", True) is not False
    strip = keys.get("tokenizer.ggml.normalizer.strip_accents", lower) is not False

    def token(name: str, default: str, *more: str) -> str | None:
        i = next((keys[key] for key in (f"tokenizer.ggml.{each}_token_id" for each in (name, *more)) if key in keys), None)
        text = tokens[i] if type(i) is int and 0 <= i < len(tokens) else default
        return text if text in vocab else None

    unknown = token("unknown", "[UNK]")
    if unknown is None:
        raise BadFileError(f"{where}: tokenizer.ggml.tokens has no unknown token, which WordPiece needs")
    return {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": strip,
                           "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _around(token("cls", "[CLS]", "bos"), token("seperator", "[SEP]", "eos"), vocab),  # their spelling
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}}


def _merges(merges: Any, where: str) -> list[list[str]]:
    if not isinstance(merges, list):
        raise BadFileError(f"{where}: tokenizer.ggml.merges is {'missing' if merges is None else 'no list of texts'}")
    pairs = [_text(merge, where).split(" ") for merge in merges]
    for pair in pairs:
        if len(pair) != 2:
            raise BadFileError(f"{where}: tokenizer.ggml.merges holds {shown(' '.join(pair))}; expected two tokens")
    return pairs


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
