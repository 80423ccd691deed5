"""The tokenizer of a model folder or file: ids as transformers 5's AutoTokenizer or the sentencepiece library gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genkit.checkpoints.config import LARGE_FILE, Fields, parse_json, read_json
from genkit.checkpoints.files import read_small, shown, shown_path
from genkit.errors import BadFileError, UsageError
from genkit.text import piece_files
from genkit.text.cutters import JsonCutter
from genkit.text.special import StandIns, is_text, texts_of
from genkit.text.utf8 import TextStream, decoder_kinds

if TYPE_CHECKING:
    import tokenizers

# What a chat template may name, and what counts as special beside the added tokens of tokenizer.json.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """tokenizer.json, or SentencePiece's tokenizer.model where there is none, with what lies beside it:
    tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja.

    Which tokens stand around a prompt (bos) is said by tokenizer.json's post-processor; `add_bos_token` in
    tokenizer_config.json is not looked at (so does transformers 5). With a tokenizer.model it is.

    folder: Path
    vocab_size: int, largest id + 1
    special_tokens: dict, "bos_token" and the like -> text, as far as the folder names them
    special_ids: frozenset of ids that `decode` leaves out
    bos_id, eos_id: int or None
    pieces: SentencePiece or None, what a tokenizer.model says
    chat_templates: dict, name -> template; chat_template: the one named "default", or None
    """

    def __init__(self, folder: str | Path, data: bytes | None = None, config: Mapping[str, Any] | None = None) -> None:
        """data and config: contents of tokenizer.json (or tokenizer.model, as gguf_vocab.py makes it) and
        tokenizer_config.json where one file (`folder`) has them inside. Raises BadFileError for a missing or broken file,
        with its name."""
        self.folder = Path(folder)
        self.pieces = piece_files.read(self.folder, data)
        if data is None:
            fields = _optional_json(self.folder / "tokenizer_config.json")
        else:
            fields = Fields(self.folder, dict(config or {}))
        self.special_tokens = _special_tokens(self.folder, fields)
        if self.pieces is not None:
            self._tokenizer, self._cutter, named = piece_files.tokenizer(self.pieces, fields, self.special_tokens)
            self.special_tokens = {**named, **self.special_tokens}
        else:
            self._tokenizer = _load(self.path) if data is None else _parse(data, self.path)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.vocab_size == 0:
            raise BadFileError(f"{shown_path(self.path)}: holds no tokens")
        if self.pieces is None:
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            if _is_llama_class(self.folder, fields, self._tokenizer):
                _place_spaces(self._tokenizer, fields)
            _add_tokens(self._tokenizer, fields, self.special_tokens)
            self._cutter = JsonCutter(self._tokenizer, lambda call: _guarded(call, self.path, "cannot encode the prompt"))
        self._drops_first_space = not {"Strip", "Metaspace"}.isdisjoint(decoder_kinds(self._tokenizer))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.chat_templates, self._template_source = _chat_templates(self.folder, fields)

    @property
    def path(self) -> Path:
        if self.folder.is_file():
            return self.folder
        return self.folder / ("tokenizer.json" if self.pieces is None else "tokenizer.model")

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.chat_templates = {} if template is None else {"default": template}

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids.

        add_special: put the tokens around it that the model expects (bos for most). parse_special: names of special tokens
        in the text become those tokens, as in transformers; else they are text like any other. Raises UsageError for
        anything that is not valid text (lone surrogates).
        """
        _check_text(text)
        return self._cutter.encode(text, add_special, parse_special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids. Bytes that are no UTF-8 become U+FFFD; an id below 2**32 without a token has no text.

        Raises UsageError for anything else than such an id.
        """
        checked = [_checked_id(token_id) for token_id in ids]
        if skip_special:
            checked = [token_id for token_id in checked if token_id not in self.special_ids]
        return _guarded(lambda: self._tokenizer.decode(checked, skip_special_tokens=False), self.path, "cannot decode")

    def token(self, token_id: int, skip_special: bool = False) -> str:
        """Text of one token as inside a text, for lists of likely tokens; U+FFFD for a part of a character."""
        text = self.decode([token_id], skip_special)
        if self._drops_first_space:  # which only the first of two loses
            text = self.decode([token_id, token_id], skip_special)[len(text) :]
        return text

    def as_json(self) -> str:
        """tokenizer.json of the tokenizer as it works, with what tokenizer_config.json changes in it."""
        return self._tokenizer.to_str()

    def added_tokens(self) -> list[tuple[int, str, bool]]:
        """Id, text, and whether it is special, of each token that is found by its name."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [(i, token.content, token.special) for i, token in sorted(added.items())]

    def id_of(self, token: str) -> int | None:
        """Id of a token by its name in the vocabulary."""
        return self._tokenizer.token_to_id(token)

    def stream(self, skip_special: bool = True) -> TextStream:
        """Text of ids that come one by one; see TextStream."""
        return TextStream(self._tokenizer, lambda ids: self.decode(ids, skip_special=False), skip_special)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, *,
                    tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
                    template: str | None = None, **variables: Any) -> str:
        """The prompt text of a chat, special tokens written out.

        tools and documents: what the template reads by these names, tools as JSON schemas ({"type": "function",
        "function": {"name", "description", "parameters"}}). template: the name of one of `chat_templates`; None takes
        "tool_use" where there are tools and such a template, else "default".

        Raises UsageError where the folder has no such template or it does not take these messages, BadFileError for a
        broken one.
        """
        from genkit.text.chat_template import render

        return render(self._template(tools, template), messages, add_generation_prompt=add_generation_prompt,
                      source=self._template_source, **{**self.special_tokens, "tools": tools, "documents": documents, **variables})

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, *,
                    tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
                    template: str | None = None, parse_special: bool = False, **variables: Any) -> list[int]:
        """Token ids of a chat; see render_chat. Names of special tokens that the template writes are those tokens; inside
        messages, tools, documents and variables they are text, unless parse_special (transformers parses all)."""
        given = {"messages": messages, "tools": tools, "documents": documents, **variables}
        if parse_special:
            return self.encode(self.render_chat(add_generation_prompt=add_generation_prompt, template=template, **given), False, True)
        stand_ins = StandIns(self._cutter.names, [*texts_of(given), self._template(tools, template)])
        text = self.render_chat(add_generation_prompt=add_generation_prompt, template=template, **stand_ins.put(given))
        _check_text(text)
        return self._cutter.encode_marked(text, stand_ins)

    def _template(self, tools: Any, name: str | None) -> str:
        templates = self.chat_templates
        if not templates:
            raise UsageError(f"{shown_path(self.folder)}: the model has no chat template; use a plain prompt (--no-chat)")
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in templates else "default"
        if name not in templates:
            raise UsageError(f"{self._template_source}: has no template named {shown(name)}; there are {', '.join(sorted(templates))}")
        return templates[name]

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._tokenizer.token_to_id(token)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise UsageError(f"prompt: {shown(text)} is not text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"prompt: not valid Unicode at character {error.start}; give it as UTF-8") from None


def _guarded(call: Any, path: Path, doing: str) -> Any:
    """The tokenizers library raises plain Exception for all that can be wrong, and a BaseException where its Rust code
    gives up."""
    try:
        return call()
    except Exception as error:
        raise BadFileError(f"{shown_path(path)}: {doing}: {shown(str(error), 300)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BadFileError(f"{shown_path(path)}: {doing}: {shown(str(error), 300)}") from error


def _checked_id(token_id: Any) -> int:
    try:
        value = token_id.__index__()
    except AttributeError:
        value = -1
    if isinstance(token_id, bool) or not 0 <= value < 2**32:
        raise UsageError(f"token id {shown(token_id)}: not a whole number from 0 to {2**32 - 1}")
    return value


def _load(path: Path) -> tokenizers.Tokenizer:
    folder = path.parent
    if path.suffix == ".gguf":
        raise BadFileError(f"{shown_path(path)}: has no tokenizer inside; it takes token ids only")
    if not path.exists():
        others = [name for name in ("vocab.json", "vocab.txt", "tekken.json") if (folder / name).exists()]
        if others:
            raise BadFileError(
                f"{shown_path(path)}: not found, and {others[0]} alone is not read; write it once with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise BadFileError(f"{shown_path(path)}: not found; a model folder needs its tokenizer")
    return _parse(read_small(path, LARGE_FILE), path)


def _parse(data: bytes, path: Path) -> tokenizers.Tokenizer:
    _refuse_prefix(data, path)
    import tokenizers

    return _guarded(lambda: tokenizers.Tokenizer.from_buffer(data), path, "no readable tokenizer")


# Spelled out with a value, or spelled with escapes so that it might be there unseen.
_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*(?!null|""|\s)|\\u00[2-7]')


def _refuse_prefix(data: bytes, path: Path) -> None:
    """Raises BadFileError for a BPE with a continuing_subword_prefix, which no model here has: the tokenizers library
    cuts tokens by its length, and where that is inside a character it aborts the whole process."""
    if not _PREFIX.search(data):
        return  # nearly always: no need to parse megabytes twice
    model = parse_json(data, shown_path(path)).get("model")
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    if prefix and model.get("type") != "WordPiece":
        raise BadFileError(f"{shown_path(path)}: model.continuing_subword_prefix is {shown(prefix)}; only null is supported")


def _optional_json(path: Path) -> Fields:
    return Fields(path, read_json(path, constants=True) if path.exists() else {})


def _is_llama_class(folder: Path, config: Fields, tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether AutoTokenizer makes a LlamaTokenizer of this folder, which places spaces by tokenizer_config.json and
    not by tokenizer.json: its class is named and the vocabulary is not byte-level."""
    name = config.string("tokenizer_class", default=None)
    model_type = None
    if (folder / "config.json").exists():
        model = Fields(folder / "config.json", read_json(folder / "config.json", constants=True))
        name = name or model.string("tokenizer_class", default=None)
        model_type = model.string("model_type", default=None)
    if (name or "").removesuffix("Fast") != "LlamaTokenizer" or model_type in ("mistral", "qwen2"):
        return False
    parts = (tokenizer.pre_tokenizer, tokenizer.decoder)
    return not any(part is not None and b'"ByteLevel"' in part.__getstate__() for part in parts)


def _place_spaces(tokenizer: tokenizers.Tokenizer, config: Fields) -> None:
    """The space before the first word (Llama 2): before the text's first word only, or with `legacy` also after every
    special token, or with `add_prefix_space` false never."""
    from tokenizers import decoders, pre_tokenizers

    prefix = config.boolean("add_prefix_space", True)
    scheme = "never" if not prefix else "always" if config.boolean("legacy", False) else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)


def _special_tokens(folder: Path, config: Fields) -> dict[str, str]:
    sources = [config]
    if "added_tokens_decoder" not in config:  # older folders: this file has the last word
        sources.append(_optional_json(folder / "special_tokens_map.json"))
    tokens = {}
    for source in sources:
        for name in SPECIAL_TOKENS:
            if name in source:
                tokens[name] = _content(source, name, source.optional(name))
    return tokens


def _content(source: Fields, key: str, value: Any) -> str:
    """A token's text, written as a string or as an object with "content"."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content or not is_text(content):
        raise source.error(key, 'a token: a string, or an object with "content"')
    return content


def _add_tokens(tokenizer: tokenizers.Tokenizer, config: Fields, special_tokens: dict[str, str]) -> None:
    """Makes tokens that only tokenizer_config.json names known, and the named special ones special."""
    from tokenizers import AddedToken

    present = tokenizer.get_added_tokens_decoder()
    known = {token.content for token in present.values()}
    flags = {repr(token) for token in present.values()}
    new = []
    listed = config.object("added_tokens_decoder")
    for key, value in sorted(listed.raw.items(), key=lambda item: item[0].zfill(20)) if listed else ():
        content = _content(listed, key, value)
        options = {
            name: value[name]
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            if isinstance(value, dict) and isinstance(value.get(name), bool)
        }
        token = AddedToken(content, **options)
        if repr(token) not in flags:
            new.append(token)
            known.add(content)
    for content in special_tokens.values():
        if content not in known:
            new.append(AddedToken(content, special=True))
            known.add(content)
    if new:
        _guarded(lambda: tokenizer.add_tokens(new), config.path, "cannot add its tokens")


def _chat_templates(folder: Path, config: Fields) -> tuple[dict[str, str], str]:
    """The templates by name, and the name of their file. Files of their own go before tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.exists():
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))[:100]
        return {"default": _template_file(path), **{file.stem: _template_file(file) for file in more}}, shown_path(path)
    value = config.optional("chat_template")
    source = f"{shown_path(config.path)} (chat_template)"
    if value is None:
        return {}, source
    if isinstance(value, str):
        return {"default": value}, source
    named = {}
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    elif isinstance(value, dict):
        named = value
    if not named or not all(isinstance(name, str) and isinstance(text, str) for name, text in named.items()):
        raise config.error("chat_template", 'a template, or a list of {"name", "template"}')
    if "default" not in named:
        raise BadFileError(f"{source}: has the templates {', '.join(sorted(named))}, but none named default")
    return named, source


def _template_file(path: Path) -> str:
    try:
        return read_small(path, 16 << 20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{shown_path(path)}: not UTF-8 text (byte {error.start})") from None
