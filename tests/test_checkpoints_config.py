"""config.json and generation_config.json: both spellings of transformers, and every lie answered by file and key."""

import json

import pytest

from genkit.checkpoints import check_token_ids, config, generation_defaults, read_config, read_json, rope_parameters
from genkit.checkpoints.config import Fields
from genkit.errors import BadFileError


def fields_of(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_config(tmp_path)


def refused(call, *arguments, **keywords):
    """The one line of the BadFileError that must come."""
    with pytest.raises(BadFileError) as error:
        call(*arguments, **keywords)
    message = str(error.value)
    assert message.isprintable() and len(message) < 600, message
    return message


BROKEN = {
    "nothing": (b"", "empty"),
    "blank": (b" \n\t", "empty"),
    "cut short": (b'{"hidden_size": 4096, "laye', "broken JSON"),
    "trailing comma": (b'{"a": 1,}', "broken JSON"),
    "two objects": (b"{}{}", "broken JSON"),
    "single quotes": (b"{'a': 1}", "broken JSON"),
    "comment": (b'{"a": 1 // one\n}', "broken JSON"),
    "raw control character": (b'{"a": "x\ny"}', "broken JSON"),
    "hexadecimal": (b'{"a": 0x10}', "broken JSON"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "latin-1": ('{"a": "\xe9"}'.encode("latin-1"), "not UTF-8 text (byte 7)"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a list": (b"[1, 2]", "holds [1, 2]; expected a JSON object"),
    "a string": (b'"model"', "holds 'model'; expected a JSON object"),
    "null": (b"null", "holds null; expected a JSON object"),
    "a number": (b"12", "holds 12; expected a JSON object"),
    "key twice": (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
    "key twice inside": (b'{"x": [{"b": 2, "b": 2}]}', "the key 'b' is there twice"),
    "key twice, escaped": (b'{"a": 1, "\\u0061": 2}', "the key 'a' is there twice"),
    "NaN": (b'{"deep": {"list": [1, NaN]}}', "deep.list[1] is NaN, which is not allowed"),
    "Infinity": (b'{"a": Infinity}', "a is Infinity"),
    "-Infinity": (b'{"a": -Infinity}', "a is -Infinity"),
    "1e999": (b'{"a": {"b": 1e999}}', "a.b is 1e999, beyond the range of a float"),
    "5000 digits": (b'{"a": [[' + b"7" * 5000 + b"]]}", "a[0][0] is a number of 5000 digits"),
    "minus 5000 digits": (b'{"a": -' + b"7" * 5000 + b"}", "a is a number of 5000 digits"),
    "lists nested 65 deep": (b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", "nested more than 64 deep"),
    "lists nested 100000 deep": (b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}", "nested more than 64 deep"),
    "objects nested 100000 deep": (b'{"a":' * 100000 + b"1" + b"}" * 100000, "nested more than 64 deep"),
    "unclosed 100000 deep": (b'{"a":' + b"[" * 100000, "nested more than 64 deep"),
    "a hostile key": (b'{"a\\u001b[31m\\u0000": NaN}', "'a\\x1b[31m\\x00' is NaN"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json(tmp_path, name):
    content, words = BROKEN[name]
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content)
    message = refused(read_json, path)
    assert message.startswith(f"{path}: ") and words in message, message


def test_what_json_may_hold(tmp_path):
    path = tmp_path / "x.json"
    nested = b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"
    for content, value in {
        b'{"model_max_length": 1000000000000000019884624838656}': {"model_max_length": 10**30 + 19884624838656},
        b'\xef\xbb\xbf{"a": 1.5e-3}': {"a": 0.0015},
        b'{"a": -0, "b": "\\ud83d\\ude00"}': {"a": 0, "b": "\U0001f600"},
        b'{"a": ' + b"9" * 100 + b"}": {"a": int("9" * 100)},
        nested: json.loads(nested),
    }.items():
        path.write_bytes(content)
        assert read_json(path) == value


def test_size_limit(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}' + b" " * 92)
    assert read_json(path, limit=100) == {"a": 1}
    assert "100 bytes; at most 99 are read" in refused(read_json, path, limit=99)


def test_constants_nobody_asks_for_pass_in_config_json(tmp_path):
    """Mamba configurations hold "time_step_limit": [0.0, Infinity]; the getters refuse what read_config lets by."""
    fields = fields_of(tmp_path, '{"time_step_limit": [0.0, Infinity], "a": NaN, "b": Infinity, "c": 1e999, "n": 3}')
    assert fields.integer("n", 1, 5) == 3
    for key, shown in (("a", "NaN"), ("b", "Infinity"), ("c", "Infinity")):
        assert f"config.json: {key} is {shown}; expected a number from 0 to 1" in refused(fields.number, key, 0, 1)
        assert f"config.json: {key} is {shown}; expected an integer" in refused(fields.integer, key, 0, 1)
        assert f"config.json: {key} is {shown}; expected a string" in refused(fields.string, key)
        assert f"config.json: {key} is {shown}; expected a token id" in refused(fields.token_ids, key)


def test_message_as_documented(tmp_path):
    fields = fields_of(tmp_path, {"hidden_size": -1})
    assert refused(fields.integer, "hidden_size", 1, 1048576) == (
        f"{tmp_path}/config.json: hidden_size is -1; expected an integer from 1 to 1048576")
    assert refused(fields.integer, "vocab_size", 1, 9).endswith(
        "config.json: vocab_size is missing; expected an integer from 1 to 9")


ANYTHING = [None, True, False, -1, 0, 1, 2**31, 2**63, 10**90, 0.5, -0.0, "x", "", "1", [], [1], [[1]], {}, {"a": 1}]


@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_getters_give_their_type_in_range_or_refuse(tmp_path, value):
    """Whatever the file holds, a getter returns what it promises or names the key."""
    fields = fields_of(tmp_path, {"key": value})
    promises = {
        lambda: fields.integer("key", 0, 10): lambda got: type(got) is int and 0 <= got <= 10,
        lambda: fields.number("key", 0, 1): lambda got: type(got) is float and 0 <= got <= 1,
        lambda: fields.number("key", 0, 1, above=True): lambda got: type(got) is float and 0 < got <= 1,
        lambda: fields.boolean("key"): lambda got: type(got) is bool,
        lambda: fields.string("key"): lambda got: type(got) is str,
        lambda: fields.string("key", ["x", "y"]): lambda got: got == "x",
        lambda: fields.integers("key", 0, 1): lambda got: got in ([], [1]),
        lambda: fields.token_ids("key", config.REQUIRED): lambda got: all(type(item) is int for item in got),
    }
    accepted = 0
    for call, promise in promises.items():
        try:
            got = call()
        except BadFileError as error:
            assert f"config.json: key is {config.shown(value)}; expected " in str(error)
        else:
            assert got == value or got == (value,) or got == tuple(value)
            assert promise(got), got
            accepted += 1
    wanted = {"None": 0, "True": 1, "-1": 0, "0": 3, "1": 4, "0.5": 2, "'x'": 2, "[]": 2, "[1]": 2, "{}": 0}
    if repr(value) in wanted:
        assert accepted == wanted[repr(value)]


def test_null_is_missing(tmp_path):
    fields = fields_of(tmp_path, {"head_dim": None, "n": 4.0})
    assert fields.integer("head_dim", 1, 512, 64) == 64 and fields.integer("head_dim", 1, 512, None) is None
    assert "head_dim" not in fields and "n" in fields
    assert fields.number("head_dim", 0, 1, 0.5) == 0.5
    assert fields.boolean("head_dim", True) is True
    assert fields.string("head_dim", None, "silu") == "silu"
    assert fields.integers("head_dim", 0, 1, None) is None
    assert fields.token_ids("head_dim") == ()
    assert fields.object("head_dim") is None
    assert fields.integer("n", 1, 4) == 4 and type(fields.integer("n", 1, 4)) is int
    assert "head_dim is null; expected an integer" in refused(fields.integer, "head_dim", 1, 512)


def test_values_are_shown_on_one_short_line(tmp_path):
    fields = fields_of(tmp_path, {"a": "line\nbreak\x1b[2J\u202e", "b": "y" * 10000, "c": list(range(10**5)),
                                  "d": {"x": 1}, "e": [["z" * 500] * 50] * 50})
    assert r"a is 'line\nbreak\x1b[2J\u202e'; expected" in refused(fields.integer, "a", 0, 1)
    for key in "bcde":
        assert len(refused(fields.integer, key, 0, 1)) < 400


def test_object_prefixes_the_key(tmp_path):
    fields = fields_of(tmp_path, {"text_config": {"rope": {"factor": "x"}}, "list": []})
    inner = fields.object("text_config").object("rope")
    assert "config.json: text_config.rope.factor is 'x'; expected a number" in refused(inner.number, "factor", 0, 1)
    assert "config.json: list is []; expected an object" in refused(fields.object, "list")


# One model in the two spellings, and what both must mean.
ROPES = [
    ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
     {"rope_type": "default", "rope_theta": 10000.0}),
    ({"rope_theta": 500000, "rope_scaling": None},
     {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
     {"rope_type": "default", "rope_theta": 500000.0}),
    ({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2}},
     {"rope_parameters": {"factor": 2.0, "rope_theta": 1e6, "rope_type": "linear", "type": "linear"}},
     {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}, "partial_rotary_factor": 0.5},
     {"rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
     {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.5, "partial_rotary_factor": 0.5}),
    ({"rope_theta": 500000.0, "max_position_embeddings": 131072,
      "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 8192}},
     {"max_position_embeddings": 131072,
      "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192, "rope_theta": 500000.0}},
     {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}),
    ({"max_position_embeddings": 4096,
      "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 32, "truncate": False}},
     {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0,
                                                           "truncate": False, "rope_theta": 10000.0}},
     {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4096,
      "beta_fast": 32.0, "truncate": False}),
    ({"max_position_embeddings": 4096, "original_max_position_embeddings": 1024,
      "rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 77,
                       "attention_factor": 1.5}},
     {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024,
      "rope_parameters": {"rope_type": "yarn", "factor": None, "attention_factor": 1.5, "rope_theta": 10000.0}},
     {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024,
      "attention_factor": 1.5}),
]


@pytest.mark.parametrize("case", range(len(ROPES)))
def test_rope_in_both_spellings(tmp_path, case):
    old, new, meaning = ROPES[case]
    meaning = {"partial_rotary_factor": 1.0} | meaning
    assert rope_parameters(fields_of(tmp_path, old)) == meaning
    assert rope_parameters(fields_of(tmp_path, new)) == meaning


@pytest.mark.parametrize("case", range(len(ROPES)))
def test_rope_means_what_transformers_makes_of_it(tmp_path, case):
    """The values transformers 5 computes with, and the file it saves after reading the old spelling, mean the same."""
    transformers = pytest.importorskip("transformers", minversion="5")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    old = {"max_position_embeddings": 2048} | ROPES[case][0]
    here = rope_parameters(fields_of(tmp_path, old))
    theirs = transformers.LlamaConfig(**json.loads(json.dumps(old)))
    theirs.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "rope_parameters" in written and "rope_scaling" not in written
    assert rope_parameters(read_config(tmp_path / "saved")) == here

    LlamaRotaryEmbedding(theirs)  # settles theirs.rope_parameters
    used = {key: value for key, value in theirs.rope_parameters.items() if key != "type" and value is not None}
    assert {"factor": here.get("factor"), "partial_rotary_factor": 1.0} | used == {"factor": None} | here


def test_rope_defaults(tmp_path):
    assert rope_parameters(fields_of(tmp_path, {}), default_theta=1e6)["rope_theta"] == 1e6
    both = {"rope_scaling": {"type": "linear", "factor": 3}, "rope_parameters": {"rope_type": "default"}}
    assert rope_parameters(fields_of(tmp_path, both))["factor"] == 3.0
    empty = {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 5}}
    assert rope_parameters(fields_of(tmp_path, empty))["factor"] == 5.0


LLAMA3 = ROPES[4][0]["rope_scaling"]


@pytest.mark.parametrize("values, words", [
    ({"rope_theta": 0}, "rope_theta is 0; expected a number above 1"),
    ({"rope_theta": -1e4}, "rope_theta is -10000.0; expected"),
    ({"rope_theta": True}, "rope_theta is true; expected"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'; expected"),
    ({"rope_scaling": []}, "rope_scaling is []; expected an object"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing; expected a number above 0"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor is 0; expected"),
    ({"rope_scaling": {"type": "linear", "factor": 10**80}}, "rope_scaling.factor is 1000"),
    ({"rope_scaling": {"type": "spiral", "factor": 2}},
     "rope_scaling.type is 'spiral'; expected one of default, linear, dynamic, llama3, yarn, longrope, su"),
    ({"rope_parameters": {"rope_type": "mrope"}}, "rope_parameters.rope_type is 'mrope'; expected one of"),
    ({"rope_parameters": {"rope_type": 3}}, "rope_parameters.rope_type is 3; expected one of"),
    ({"rope_parameters": {"rope_theta": -3}}, "rope_parameters.rope_theta is -3; expected"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}},
     "rope_parameters.full_attention is an object; expected one set of values for all layers"),
    ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; expected a number above 0 and at most 1"),
    ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}},
     "rope_scaling.high_freq_factor is 1; expected more than low_freq_factor, 1"),
    ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}}, "low_freq_factor is missing"),
    ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings is 0"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}}, "max_position_embeddings is missing"),
    ({"max_position_embeddings": 8, "rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": "x"}},
     "rope_scaling.beta_fast is 'x'"),
    ({"max_position_embeddings": 8, "rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}},
     "rope_scaling.truncate is 1; expected true or false"),
])
def test_rope_lies(tmp_path, values, words):
    message = refused(rope_parameters, fields_of(tmp_path, values))
    assert message.startswith(f"{tmp_path}/config.json: ") and words in message


def defaults_of(tmp_path, generation, values=None):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return generation_defaults(tmp_path, fields_of(tmp_path, values or {}))


def test_generation_defaults(tmp_path):
    none = defaults_of(tmp_path, None, {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": -1, "temperature": 0.3})
    assert none == config.GenerationDefaults(eos_token_ids=(2,), bos_token_id=1)
    both = defaults_of(tmp_path, {"eos_token_id": [7, 9, 7], "do_sample": True, "temperature": 0.6, "top_p": 0.95,
                                  "top_k": 20, "min_p": 0, "repetition_penalty": 1.05, "max_length": 4096,
                                  "transformers_version": "5.23.0", "unheard_of": [1]},
                       {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0})
    assert both == config.GenerationDefaults((7, 9), 1, 0, True, 0.6, 20, 0.95, 0.0, 1.05)
    nulls = defaults_of(tmp_path, {"eos_token_id": None, "temperature": None, "do_sample": None}, {"eos_token_id": [3]})
    assert nulls == config.GenerationDefaults((3,))
    assert defaults_of(tmp_path, {"top_k": -1}).top_k == 0


def test_what_transformers_saves_is_read(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5")
    transformers.GenerationConfig(eos_token_id=[5, 6], do_sample=True, temperature=0.7, top_k=40, top_p=0.9,
                                  min_p=0.05, repetition_penalty=1.1, pad_token_id=3).save_pretrained(tmp_path)
    transformers.LlamaConfig(bos_token_id=11).save_pretrained(tmp_path)
    assert generation_defaults(tmp_path, read_config(tmp_path)) == config.GenerationDefaults(
        (5, 6), 11, 3, True, 0.7, 40, 0.9, 0.05, 1.1)


@pytest.mark.parametrize("key, value", [
    ("temperature", -0.1), ("temperature", 1e-7), ("temperature", 1e9), ("temperature", "hot"), ("temperature", True),
    ("top_k", -2), ("top_k", 0.5), ("top_k", 2**31), ("top_p", 0), ("top_p", 1.01), ("top_p", -1), ("min_p", 2),
    ("min_p", -0.5), ("repetition_penalty", 0), ("repetition_penalty", -1), ("repetition_penalty", []),
    ("do_sample", "yes"), ("do_sample", 1), ("eos_token_id", -1), ("eos_token_id", [1, -2]), ("eos_token_id", [[1]]),
    ("eos_token_id", "</s>"), ("eos_token_id", 2**31), ("eos_token_id", True), ("bos_token_id", [1]),
    ("bos_token_id", -2), ("pad_token_id", 2**40), ("pad_token_id", 1.5)])
def test_absurd_generation_settings(tmp_path, key, value):
    message = refused(defaults_of, tmp_path, {key: value})
    assert message.startswith(f"{tmp_path}/generation_config.json: {key} is {config.shown(value)}; expected ")
    if key.endswith("token_id"):
        (tmp_path / "generation_config.json").unlink()
        message = refused(defaults_of, tmp_path, None, {key: value})
        assert message.startswith(f"{tmp_path}/config.json: {key} is {config.shown(value)}; expected ")


def test_broken_generation_config_is_not_overlooked(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": NaN}')
    assert "generation_config.json: temperature is NaN" in refused(defaults_of, tmp_path, None)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").symlink_to("nowhere")
    assert "generation_config.json: a link to a file that is not there" in refused(defaults_of, tmp_path, None)


def test_token_ids_beyond_the_embedding(tmp_path):
    check_token_ids(99, 100, tmp_path / "tokenizer.json")
    assert refused(check_token_ids, 100, 100, tmp_path / "tokenizer.json") == (
        f"{tmp_path}/tokenizer.json: has token id 100, but the embedding has 100 rows (vocab_size in config.json); "
        f"tokenizer and weights are not of one model")


def test_config_missing(tmp_path):
    assert refused(read_config, tmp_path) == f"{tmp_path}/config.json: not found"
    assert refused(lambda: Fields(tmp_path / "config.json", {}).model_type).endswith(
        "config.json: model_type is missing; expected a string")
