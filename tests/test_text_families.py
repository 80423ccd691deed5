"""Chats of eight families: text as transformers renders it, and words of a message that never become special tokens."""

import itertools
import json

import pytest
from template_families import CHATS, FAMILIES, TOOLS
from text_folders import make_folder

from genkit.errors import UsageError
from genkit.text import Tokenizer

SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def family(name, folder):
    """A tokenizer whose special tokens are those that the family's templates write."""
    make_folder("llama3", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    templates = FAMILIES[name]
    texts = [templates] if isinstance(templates, str) else templates.values()
    config["chat_template"] = templates if isinstance(templates, str) else [{"name": k, "template": t} for k, t in templates.items()]
    names = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|system|>",
             "<|assistant|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|START_OF_TURN_TOKEN|>",
             "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"]
    names = [token for token in names if any(token in text for text in texts) or token in ("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>")]
    for i, token in enumerate(names):
        config["added_tokens_decoder"][str(600 + i)] = {"content": token, "lstrip": False, "rstrip": False, "normalized": False,
                                                        "single_word": False, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: family(name, root / name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_as_transformers_renders_it(tokenizers, name):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    from jinja2 import TemplateError

    ours, refused, rendered = tokenizers[name], 0, 0
    documents = [{"title": "One", "text": "é"}, {"title": "Two", "n": 5}]
    variants = [{}, {"tools": TOOLS}]
    cases = [*itertools.product(CHATS, variants, (True,)), ("plain", {}, False), ("calls", {"tools": TOOLS}, False)]
    for chat, variant, prompt in cases + [("plain", {"documents": documents}, True)] * (name == "command-r"):
        templates = FAMILIES[name]
        key = "rag" if "documents" in variant and name == "command-r" else "tool_use" if "tools" in variant else "default"
        template = templates if isinstance(templates, str) else templates[key]
        try:
            [wanted], _ = utils.render_jinja_template([CHATS[chat]], chat_template=template, add_generation_prompt=prompt,
                                                      **SPECIAL, **variant)
        except TemplateError:
            with pytest.raises(UsageError, match="does not take these messages"):
                ours.render_chat(CHATS[chat], prompt, **variant)
            refused += 1
            continue
        wanted_template = {"template": "rag"} if key == "rag" else {}
        assert ours.render_chat(CHATS[chat], prompt, **wanted_template, **variant) == wanted
        rendered += 1
        if chat in ("system", "thought") and not variant:
            ids = ours.encode_chat(CHATS[chat], prompt, **wanted_template, **variant)
            assert ids == ours.encode(wanted, False, parse_special=True)  # no message names a token
            assert len(ours.special_ids.intersection(ids)) > 0
    assert rendered > 3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_message_makes_no_special_token(tokenizers, name):
    """Every special token in a message, whole, cut over two messages, in a tool: the ids hold those of the template alone."""
    ours = tokenizers[name]
    tokens = sorted({*ours.special_tokens.values()} | {ours.decode([i], False) for i in ours.special_ids})
    hostile = "".join(tokens) + " and " + " ".join(token + token for token in tokens) + tokens[0][:-1]
    calm, messages = [{"role": "user", "content": "hello"}], [{"role": "user", "content": hostile}]
    plain, ids, parsed = ours.encode_chat(calm), ours.encode_chat(messages), ours.encode_chat(messages, parse_special=True)
    assert [i for i in ids if i in ours.special_ids] == [i for i in plain if i in ours.special_ids]
    assert ours.decode(ids, skip_special=False) == ours.render_chat(messages)
    assert len([i for i in parsed if i in ours.special_ids]) > len(tokens)
    if name in ("qwen", "llama3", "command-r"):
        tools = [{"type": "function", "function": {"name": "f", "description": hostile, "parameters": {"properties": {}}}}]
        calm = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {"properties": {}}}}]
        found = [[i for i in ours.encode_chat(CHATS["plain"], tools=t) if i in ours.special_ids] for t in (tools, calm)]
        assert found[0] == found[1]


def test_named_templates(tokenizers):
    ours = tokenizers["command-r"]
    assert set(ours.chat_templates) == {"default", "tool_use", "rag"}
    assert "## Tools" in ours.render_chat(CHATS["plain"], tools=TOOLS) and "## Tools" not in ours.render_chat(CHATS["plain"])
    assert "## Tools" not in ours.render_chat(CHATS["plain"], tools=TOOLS, template="default")
    with pytest.raises(UsageError, match="no template named 'x'; there are default, rag, tool_use"):
        ours.render_chat(CHATS["plain"], template="x")
    with pytest.raises(UsageError, match="one call at a time"):
        tokenizers["llama3"].render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [1, 2]}])


def test_parts_of_a_token_in_neighbouring_texts(tokenizers):
    ours = tokenizers["qwen"]
    ours_template = ours.chat_template
    try:
        ours.chat_template = "{% for part in messages[0].content %}{{ part.text }}{% endfor %}{{ messages[0]|tojson(ensure_ascii=true) }}"
        chat = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("a<|im_", "start|>", "<", "|im_end|> ﷐")]}]
        ids = ours.encode_chat(chat)
        assert ours.special_ids.isdisjoint(ids) and ours.decode(ids) == ours.render_chat(chat)
    finally:
        ours.chat_template = ours_template
