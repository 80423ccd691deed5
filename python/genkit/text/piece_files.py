"""A tokenizer of SentencePiece's tokenizer.model and the JSON files beside it, as transformers reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.checkpoints.config import LARGE_FILE, Fields, read_json
from genkit.checkpoints.files import read_small, shown, shown_path
from genkit.errors import BadFileError
from genkit.text.cutters import PieceCutter
from genkit.text.sentencepiece import CONTROL, SPACE, UNKNOWN, USER_DEFINED, SentencePiece, parse
from genkit.text.special import is_text

if TYPE_CHECKING:
    import tokenizers

NAME = "tokenizer.model"
FIRST_BYTE = b"\x12"  # of SentencePiece.to_bytes, and of no JSON
MAX_ID = 1 << 24
FLAGS = ("lstrip", "rstrip")


def read(folder: Path, data: bytes | None) -> SentencePiece | None:
    """None where there is a tokenizer.json, or nothing."""
    if data is not None:
        return parse(data, folder) if data[:1] == FIRST_BYTE else None
    path = folder / NAME
    if (folder / "tokenizer.json").exists() or not path.exists():
        return None
    return parse(read_small(path, LARGE_FILE), path)


def tokenizer(model: SentencePiece, config: Fields, special_tokens: dict[str, str],
              ) -> tuple["tokenizers.Tokenizer", PieceCutter, dict[str, str]]:
    """Names of tokens, the encoder, and the special tokens that the model itself names. Raises BadFileError."""
    from tokenizers import AddedToken

    own = {f"{name}_token": model.texts[i] for name, i in model.special.items()}
    if config.optional("tokenizer_class") in ("T5Tokenizer", "T5TokenizerFast") or model.unigram:
        own.pop("bos_token", None)
    added = _added(model, config, {**own, **special_tokens})
    texts = dict(enumerate(model.texts)) | {i: name for name, (i, *_) in added.items()}
    model = _renamed(model, texts)
    names = model.names({text: i for i, text in reversed(texts.items())})
    names.add_tokens([AddedToken(name, special=special, lstrip=lstrip, rstrip=rstrip, normalized=False)
                      for name, (_, special, lstrip, rstrip) in sorted(added.items(), key=lambda item: item[1])])
    prefix = config.boolean("add_prefix_space", True) and model.add_dummy_prefix
    scheme = "never" if not prefix else "always" if config.boolean("legacy", False) else "first"
    if scheme == "always" and not model.unigram:  # so after a user-defined symbol too, as transformers and llama.cpp have it
        for text, i in ((text, i) for i, text in enumerate(model.texts) if model.types[i] == USER_DEFINED):
            added.setdefault(text.replace(SPACE, " "), (i, False, False, False))
    around: tuple[list[int], list[int]] = ([], [])
    tokens = {**own, **special_tokens}
    for name, ids, default in (("bos", around[0], not model.unigram), ("eos", around[1], model.unigram)):
        token = tokens.get(f"{name}_token")
        i = None if token is None else names.token_to_id(token)
        if i is not None and config.boolean(f"add_{name}_token", default):
            ids.append(i)
    return names, PieceCutter(model, added, scheme, around), own


def _renamed(model: SentencePiece, texts: dict[int, str]) -> SentencePiece:
    """With the names that added tokens have put in the place of pieces', which no text is cut into any more."""
    others = {i for i, text in enumerate(model.texts) if texts[i] != text}
    if not others:
        return model
    return replace(model, texts=[texts[i] for i in range(len(model.texts))],
                   types=[CONTROL if i in others and of_type != UNKNOWN else of_type for i, of_type in enumerate(model.types)])


def _added(model: SentencePiece, config: Fields, special_tokens: dict[str, str]) -> dict[str, tuple[int, bool, bool, bool]]:
    """Id, special, lstrip, rstrip of each token beside the normal pieces."""
    found = {model.texts[i]: (i, True, False, False) for i, of_type in enumerate(model.types) if of_type in (CONTROL, UNKNOWN)}
    known = {text: i for i, text in reversed(list(enumerate(model.texts)))}
    taken = {i: text for text, i in known.items()}
    special = set(special_tokens.values())

    def add(fields: Fields, i: Any, content: Any, flags: dict[str, Any]) -> None:
        where = f"{shown_path(fields.path)}: token {shown(content)}"
        if type(i) is not int or not 0 <= i < MAX_ID:
            raise BadFileError(f"{where} has id {shown(i)}; expected one from 0 to {MAX_ID - 1}")
        if not isinstance(content, str) or not content or not is_text(content):
            raise BadFileError(f"{where} of id {i} is no text that could be a token's")
        if known.get(content, i) != i:
            raise BadFileError(f"{where} has id {i} here and {known[content]} elsewhere")
        if i in taken and taken[i] != content:  # a name that replaces another's
            known.pop(taken[i], None)
            found.pop(taken[i], None)
        known[content], taken[i] = i, content
        is_special = flags.get("special")
        if not isinstance(is_special, bool):
            is_special = content in special or (content in found and found[content][1])
        found[content] = (i, is_special, *(flags.get(name) is True for name in FLAGS))

    path = config.path.parent / "added_tokens.json"
    if config.path.name == "tokenizer_config.json" and path.exists():
        listed = Fields(path, read_json(path))
        for content, i in listed.raw.items():
            add(listed, i, content, {})
    decoder = config.object("added_tokens_decoder")
    for key, value in decoder.raw.items() if decoder else ():
        flags = value if isinstance(value, dict) else {}
        add(decoder, int(key) if key.isascii() and key.isdigit() and len(key) < 9 else key,
            flags.get("content") if flags else value, flags)
    listed = config.optional("additional_special_tokens") or []
    for content in [*special, *(token for token in listed if isinstance(token, str))]:
        if not content:
            continue
        if content in found:
            i, _, *flags = found[content]
            found[content] = (i, True, *flags)
        elif content in known:
            found[content] = (known[content], True, False, False)
        else:  # as transformers: it gets the next id
            add(config, 1 + max(taken), content, {"special": True})
    return found
