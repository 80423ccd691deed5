"""The library's face: load, generate, stream, logits; the same seed gives the same tokens; bad arguments name themselves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import genkit
from genkit import _core
from genkit.checkpoints import open_checkpoint
from genkit.errors import BadFileError, DeviceError, Error, ResourceError, UsageError

FIXTURES = Path(__file__).parent / "fixtures"
PROMPT = [5, 17, 3, 99, 42]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random llama with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(FIXTURES / "llama", folder)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: vocab - 2]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return genkit.load(folder)


@pytest.fixture
def altered(folder, tmp_path):
    """A copy of the folder to break."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_import_is_light():
    import subprocess
    import sys

    code = "import genkit, sys; print([m for m in ('torch', 'tokenizers', 'numpy', 'rich', 'jinja2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_greedy_is_the_argmax_of_the_logits(model):
    tokens = list(PROMPT)
    for _ in range(12):
        tokens.append(int(model.logits(tokens)[-1].argmax()))
    generation = model.generate(PROMPT, max_tokens=12, ignore_eos=True)
    assert generation.tokens == tokens[len(PROMPT) :]
    assert generation.prompt_tokens == PROMPT
    assert (generation.finish_reason, generation.seed) == ("length", None)


def test_text_and_tokens_agree(model):
    generation = model.generate("hello wörld", max_tokens=40, ignore_eos=True)
    assert generation.text == model.tokenizer.decode(generation.tokens)
    pieces = []
    again = model.generate("hello wörld", max_tokens=40, ignore_eos=True, on_text=pieces.append)
    assert "".join(pieces) == again.text == generation.text
    stream = model.stream("hello wörld", max_tokens=40, ignore_eos=True)
    assert "".join(stream) == stream.generation.text == generation.text


def test_a_seed_repeats_on_any_number_of_threads(folder):
    texts = []
    for threads in (1, 2, 3, 5):
        m = genkit.load(folder, threads=threads)
        texts.append(m.generate(PROMPT, max_tokens=50, temperature=1.5, top_p=0.95, seed=7, ignore_eos=True).tokens)
        assert _core.get_threads() == threads
    assert all(tokens == texts[0] for tokens in texts)
    other = genkit.load(folder, threads=2).generate(PROMPT, max_tokens=50, temperature=1.5, seed=8, ignore_eos=True)
    assert other.tokens != texts[0]


def test_an_unseeded_draw_reports_a_seed_that_repeats_it(model):
    first = model.generate(PROMPT, max_tokens=30, temperature=2.0, ignore_eos=True)
    second = model.generate(PROMPT, max_tokens=30, temperature=2.0, ignore_eos=True)
    assert first.seed is not None and first.seed != second.seed and first.tokens != second.tokens
    again = model.generate(PROMPT, max_tokens=30, temperature=2.0, ignore_eos=True, seed=first.seed)
    assert again.tokens == first.tokens


def test_stops_at_any_eos_unless_told_not_to(model, altered):
    free = model.generate(PROMPT, max_tokens=30, ignore_eos=True)
    eos = free.tokens[10]
    end = free.tokens.index(eos) + 1
    (altered / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, eos]}))
    m = genkit.load(altered)
    generation = m.generate(PROMPT, max_tokens=30)
    assert (generation.tokens, generation.finish_reason) == (free.tokens[:end], "stop")
    assert generation.text == m.tokenizer.decode(free.tokens[: end - 1])
    assert m.generate(PROMPT, max_tokens=30, ignore_eos=True).tokens == free.tokens


def test_the_tokenizers_end_of_text_serves_when_no_other_is_named(model, altered):
    config = json.loads((altered / "config.json").read_text())
    del config["eos_token_id"]
    (altered / "config.json").write_text(json.dumps(config))
    end = model.tokenizer.eos_id
    assert end not in (None, 2)
    generation = genkit.load(altered).generate(PROMPT, max_tokens=10, logit_bias={end: 1e6})
    assert (generation.tokens, generation.text, generation.finish_reason) == ([end], "", "stop")
    assert model.generate(PROMPT, max_tokens=3, logit_bias={end: 1e6}).finish_reason == "length"


def test_stop_strings_end_the_text_before_themselves(model):
    free = model.generate("abc", max_tokens=40, ignore_eos=True)
    stop = free.text[7:10]
    generation = model.generate("abc", max_tokens=40, ignore_eos=True, stop=[stop, "never there"])
    assert generation.text == free.text[: free.text.index(stop)]
    assert generation.finish_reason == "stop" and len(generation.tokens) < 40
    assert generation.tokens == free.tokens[: len(generation.tokens)]


def test_defaults_come_from_generation_config(model, altered):
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.2}
    (altered / "generation_config.json").write_text(json.dumps(settings))
    m = genkit.load(altered)
    given = m.generate(PROMPT, max_tokens=8, seed=1, top_k=9).settings
    assert (given["temperature"], given["top_k"], given["top_p"], given["repeat_penalty"]) == (0.7, 9, 0.8, 1.2)
    assert m.generate(PROMPT, max_tokens=8, temperature=0).seed is None
    assert model.generate(PROMPT, max_tokens=8).settings["temperature"] == 0


def test_chat_is_the_template_and_nothing_else(model):
    chat = model.generate("hi", max_tokens=4, system="be brief")
    assert chat.prompt_tokens == model.tokenizer.encode("system: be brief\nuser: hi\nassistant:")
    assert chat.settings["chat"] is True
    plain = model.generate("hi", max_tokens=4, chat=False)
    assert plain.prompt_tokens == model.tokenizer.encode("hi")
    with pytest.raises(UsageError, match="--system needs a chat template"):
        model.generate("hi", chat=False, system="x")


def test_logprobs_are_those_of_the_raw_distribution(model):
    generation = model.generate(PROMPT, max_tokens=6, temperature=0.5, repeat_penalty=1.3, seed=2, logprobs=3,
                                ignore_eos=True)
    logits = model.logits(PROMPT + generation.tokens).astype(np.float64)[len(PROMPT) - 1 : -1]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, entry in zip(expected, generation.tokens, generation.logprobs):
        assert entry["id"] == token
        assert entry["logprob"] == pytest.approx(row[token], abs=1e-4)
        assert [top["id"] for top in entry["top"]] == np.argsort(-row, kind="stable")[:3].tolist()


def test_beams_find_a_likelier_text_than_greedy(model):
    def total(generation):
        logits = model.logits(PROMPT + generation.tokens).astype(np.float64)[len(PROMPT) - 1 : -1]
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return sum(row[token] for row, token in zip(logprobs, generation.tokens))

    greedy = model.generate(PROMPT, max_tokens=70, ignore_eos=True)
    beams = model.generate(PROMPT, max_tokens=70, ignore_eos=True, beams=6, logprobs=1)
    assert len(beams.tokens) == 70 and total(beams) > total(greedy)
    assert sum(entry["logprob"] for entry in beams.logprobs) == pytest.approx(total(beams), abs=1e-3)
    with pytest.raises(UsageError, match="beam search draws nothing"):
        model.generate(PROMPT, beams=2, temperature=1.0)


def test_the_context_is_a_limit_on_both(folder):
    m = genkit.load(folder, context=20)
    generation = m.generate(PROMPT, ignore_eos=True)
    assert (len(generation.tokens), generation.finish_reason) == (15, "length")
    assert len(m.generate([1] * 19, ignore_eos=True).tokens) == 1
    with pytest.raises(UsageError, match="prompt has 20 tokens and the context 20"):
        m.generate([1] * 20)
    with pytest.raises(UsageError, match="prompt has 21 tokens, more than the context of 20"):
        m.generate([1] * 21)
    with pytest.raises(UsageError, match="21 tokens"):
        m.logits([1] * 21)
    with pytest.raises(UsageError, match="context: 0"):
        genkit.load(folder, context=0)


def test_cancelling_keeps_what_was_made(model, monkeypatch):
    monkeypatch.setattr("genkit.batch.BURST_SECONDS", 0.0)  # asked after every token, however fast the machine is
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > 6

    generation = model.generate(PROMPT, max_tokens=50, ignore_eos=True, cancelled=cancelled)
    free = model.generate(PROMPT, max_tokens=50, ignore_eos=True)
    assert generation.finish_reason == "interrupted"
    assert 0 < len(generation.tokens) < 10 and free.tokens[: len(generation.tokens)] == generation.tokens


@pytest.mark.parametrize("options, message", [
    (dict(max_tokens=0), "max_tokens: 0"), (dict(max_tokens=-3), "max_tokens: -3"), (dict(max_tokens=2.5), "max_tokens"),
    (dict(temperature=-0.1), "temperature: -0.1"), (dict(temperature=float("nan")), "temperature: nan"),
    (dict(top_k=-1), "top_k: -1"), (dict(top_p=0), "top_p: 0"), (dict(top_p=1.01), "top_p: 1.01"),
    (dict(min_p=-0.5), "min_p: -0.5"), (dict(repeat_penalty=0), "repeat_penalty: 0"), (dict(seed=-1), "seed: -1"),
    (dict(seed=2**64), "seed"), (dict(beams=0), "beams: 0"), (dict(beams=1000), "beams: 1000"), (dict(stop=[""]), "stop"),
    (dict(logprobs=-1), "logprobs: -1"), (dict(logprobs=10**6), "logprobs"), (dict(logit_bias={10**6: 1.0}), "1000000"),
    (dict(length_penalty=float("inf"), beams=2), "length_penalty"), (dict(stop=7), "stop"),
])
def test_settings_out_of_range(model, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        model.generate(PROMPT, **options)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**6], ["a", 3], [1.5], [["a"]], [[]], 7, None, [True], "\ud800"])
def test_prompts_that_cannot_be(model, prompt):
    with pytest.raises(UsageError):
        model.generate(prompt, chat=False)


def test_threads_and_device_out_of_range(folder):
    for threads in (0, -1, 2000, 1.5, True):
        with pytest.raises(UsageError, match="threads"):
            genkit.load(folder, threads=threads)
    with pytest.raises(UsageError, match="device.*'tpu'"):
        genkit.load(folder, device="tpu")
    with pytest.raises(DeviceError, match="--device cuda") as caught:
        genkit.load(folder, device="cuda")
    assert caught.value.exit_code == 5


def test_nan_in_the_weights_is_an_error_not_a_token(altered):
    with open_checkpoint(altered) as checkpoint:
        info = checkpoint.tensors["model.norm.weight"]
    assert info.dtype == "bf16"
    with open(info.file, "r+b") as file:
        file.seek(info.offset)
        file.write(b"\xc0\x7f")  # a bf16 NaN
    m = genkit.load(altered)
    for beams in (1, 3):
        with pytest.raises(BadFileError, match="not finite"):
            m.generate(PROMPT, max_tokens=5, beams=beams)


def test_tokenizer_and_embedding_must_be_of_one_model(altered):
    tokenizer = json.loads((altered / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["far"] = 500_000
    (altered / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Error) as caught:
        genkit.load(altered)
    assert caught.value.exit_code == 3
    assert "tokenizer.json" in str(caught.value) and "500000" in str(caught.value)


def test_token_ids_work_without_a_tokenizer(altered, model):
    (altered / "tokenizer.json").unlink()
    m = genkit.load(altered)
    generation = m.generate(PROMPT, max_tokens=9, ignore_eos=True)
    assert (generation.tokens, generation.text) == (model.generate(PROMPT, max_tokens=9, ignore_eos=True).tokens, "")
    with pytest.raises(BadFileError, match="tokenizer.json"):
        m.generate("text")
    with pytest.raises(BadFileError, match="tokenizer.json"):
        m.generate(PROMPT, stop="x")


def test_memory_is_counted_before_it_is_taken(model, monkeypatch):
    monkeypatch.setattr("genkit.machine.memory_available", lambda: 10_000)
    with pytest.raises(ResourceError, match="beside the weights, and 9.8 KiB are free") as caught:
        model.generate(PROMPT, max_tokens=100)
    assert caught.value.exit_code == 4


def test_progress_counts_every_byte(folder):
    seen = []
    genkit.load(folder, progress=lambda done, total: seen.append((done, total)))
    done, totals = [d for d, _ in seen], {t for _, t in seen}
    assert done == sorted(done) and len(totals) == 1 and done[-1] == totals.pop()


def test_logits_do_not_depend_on_the_prefill_chunk(model, monkeypatch):
    prompt = np.random.default_rng(3).integers(0, model.config.vocab_size, 150).tolist()
    whole = model.logits(prompt)
    for chunk in (1, 7, 64):
        monkeypatch.setattr("genkit.batch.PREFILL_CHUNK", chunk)
        np.testing.assert_array_equal(model.logits(prompt), whole)
