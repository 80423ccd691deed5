"""Text to ids, with special tokens by name parsed or left as text: of a tokenizer.json, and of SentencePiece's pieces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Callable, Iterable, Mapping

from genkit.text.special import Names, StandIns

if TYPE_CHECKING:
    import tokenizers

    from genkit.text.sentencepiece import SentencePiece

Guard = Callable[[Callable[[], Any]], Any]  # calls the tokenizers library, whose errors are of every kind


class JsonCutter:
    """tokenizers' own encoding, and a second tokenizer that knows no special tokens, for text that is only text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, guard: Guard) -> None:
        self._parsing, self._guard = tokenizer, guard
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self.names = Names({token: i for i, token in self._special.items()})
        self._plain: _Plain | None = None
        self._inner: _Plain | None = None

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        if parse_special or not self._special:
            return self._guard(lambda: self._parsing.encode(text, add_special_tokens=add_special)).ids
        return self._text(text, add_special)

    def encode_marked(self, text: str, stand_ins: StandIns) -> list[int]:
        """Special tokens by name are parsed; where a stand-in is their first letter they are text."""
        if not stand_ins.used:
            return self.encode(text, False, True)
        encoding = self._guard(lambda: self._parsing.encode(text, add_special_tokens=False))
        ids: list[int] = []
        end = 0
        for i, (begin, after) in zip(encoding.ids, encoding.offsets):
            if i in self._special and self._special[i] in text[begin:after]:  # an unknown letter has the id of one too
                ids += self._part(stand_ins.take(text[end:begin]), end == 0)
                ids.append(i)
                end = after
        return ids + self._part(stand_ins.take(text[end:]), end == 0)

    def _part(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if first:
            return self._text(text, False)
        if self._inner is None:
            self._inner = self._made(_never_first)
        return self._guard(lambda: self._inner.encode(text, False))

    def _text(self, text: str, add_special: bool) -> list[int]:
        if self._plain is None:
            self._plain = self._made(lambda part: part)
        return self._guard(lambda: self._plain.encode(text, add_special))

    def _made(self, change: Callable[[Any], Any]) -> "_Plain":
        return self._guard(lambda: _Plain(self._parsing, change))


class _Plain:
    """A tokenizer without its special tokens. It shares the vocabulary with the one it is made from, unless that lets text
    become a special token even so: then it has a copy in which their names are such as no text has."""

    def __init__(self, source: tokenizers.Tokenizer, change: Callable[[Any], Any]) -> None:
        from tokenizers import Tokenizer

        added = source.get_added_tokens_decoder()
        self._source, self._change = source, change
        self._special = {i for i, token in added.items() if token.special}
        unknown = getattr(source.model, "unk_token", None)
        self._unknown = None if unknown is None else source.token_to_id(unknown)
        self._tokenizer = Tokenizer(source.model)
        self._renamed = type(source.model).__name__ != "BPE"
        if self._renamed:
            self._tokenizer = self._rename()
        else:
            self._set_up()

    def _set_up(self) -> None:
        source, tokenizer = self._source, self._tokenizer
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            if getattr(source, part) is not None:
                setattr(tokenizer, part, self._change(getattr(source, part)) if part == "pre_tokenizer" else getattr(source, part))
        kept = [(i, token) for i, token in sorted(source.get_added_tokens_decoder().items()) if not token.special]
        tokenizer.add_tokens([token for _, token in kept])
        self._ids = {}
        for i, token in kept:
            if tokenizer.token_to_id(token.content) != i:
                self._ids[tokenizer.token_to_id(token.content)] = i

    def encode(self, text: str, add_special: bool) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special)
        ids = encoding.ids
        if not self._renamed and not self._special.isdisjoint(ids):
            of_text = {i for i, around in zip(ids, encoding.special_tokens_mask) if not around}
            if self._special & of_text - {self._unknown}:
                self._renamed = True
                self._tokenizer = self._rename()
                ids = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return [self._ids.get(i, i) for i in ids] if self._ids else ids

    def _rename(self) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer

        data = json.loads(self._source.to_str())
        special = {token["content"] for token in data["added_tokens"] if token["special"]}
        names = {name: f"\U0010ffff{name}\U0010ffff" for name in special}
        model = data["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
        else:  # unigram: pairs of token and score, where the place is the id
            model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        if "merges" in model:
            pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
            model["merges"] = [pair for pair in pairs if special.isdisjoint([*pair, "".join(pair)])]
        data["added_tokens"] = []
        self._tokenizer = Tokenizer.from_str(json.dumps(data))
        self._set_up()
        return self._tokenizer


def _never_first(part: Any) -> Any:
    """A pre_tokenizer for text within a text: what puts a space before the first word only puts none."""
    state = part.__getstate__()
    if b'"first"' not in state:
        return part
    from tokenizers import Tokenizer

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: "never" if (key, item) == ("prepend_scheme", "first") else changed(item) for key, item in value.items()}
        return [changed(item) for item in value] if isinstance(value, list) else value

    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": changed(json.loads(state)),
             "model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}
    return Tokenizer.from_str(json.dumps(whole)).pre_tokenizer


class PieceCutter:
    """SentencePiece's own encoding between the added tokens, which that library knows nothing of."""

    def __init__(self, model: SentencePiece, added: Mapping[str, tuple[int, bool, bool, bool]], scheme: str,
                 around: tuple[list[int], list[int]]) -> None:
        """added: id, special, lstrip and rstrip of each. scheme: where the dummy space goes, before the "first" word only,
        "always" before the text between two added tokens, or "never". around: ids before and after every text."""
        self._encoder = model.encoder()
        self._scheme, self._before, self._after = scheme, *around
        self._kept = Names({name: flags for name, flags in added.items() if not flags[1]})
        self._all = Names(added)
        self.names = Names({name: flags for name, flags in added.items() if flags[1]})

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        ids = self._cut(text, self._all if parse_special else self._kept)
        return [*self._before, *ids, *self._after] if add_special else ids

    def encode_marked(self, text: str, stand_ins: StandIns) -> list[int]:
        if not stand_ins.used:
            return self.encode(text, False, True)
        ids: list[int] = []
        for begin, part in self._parts(text, self.names):
            ids += [part] if isinstance(part, int) else self._cut(stand_ins.take(part), self._kept, begin)
        return ids

    def _cut(self, text: str, names: Names, begin: int = 0) -> list[int]:
        ids: list[int] = []
        for at, part in self._parts(text, names):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encoder.encode(part, self._scheme == "always" or (self._scheme == "first" and begin + at == 0))
        return ids

    def _parts(self, text: str, names: Names) -> Iterable[tuple[int, int | str]]:
        """Places, and ids of added tokens or the text between."""
        end = 0
        for at, name in names.find(text):
            i, _, lstrip, rstrip = names.tokens[name]
            between = text[end:at].rstrip() if lstrip else text[end:at]
            if between:
                yield end, between
            yield at, i
            end = at + len(name)
            while rstrip and end < len(text) and text[end].isspace():
                end += 1
        if end < len(text):
            yield end, text[end:]
