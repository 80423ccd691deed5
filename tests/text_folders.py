"""Small tokenizer folders in the manner of real models, trained on the spot: what the text tests read."""

import json
import os
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ["gpt2", "llama3", "qwen", "smollm", "llama2", "llama2_legacy", "llama2_file", "gemma"]

# Latin with marks, combining marks, Chinese, Arabic, emoji joined of several characters, flags, a rare plane.
FOREIGN = "Änderung naïve e\u0301a\u0308 日本語のテキスト 中文字符 العربية हिन्दी 😀👨‍👩‍👧🏽🇩🇪 𓀀𝄞 \u200bend\n"


def corpus() -> list[str]:
    """Lines to train on: a few files of the standard library, and FOREIGN."""
    library = Path(os.__file__).parent
    names = ["textwrap.py", "bisect.py", "shlex.py", "string.py", "queue.py"]
    return [(library / name).read_text(encoding="utf-8") for name in names] + [FOREIGN * 30]


def make_folder(kind: str, folder: Path) -> Path:
    """A folder with tokenizer.json, tokenizer_config.json and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, config, model_type = _MAKERS[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def _byte_level(pre_tokenizer, specials, post_processor=None, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = post_processor or processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _gpt2():
    end = "<|endoftext|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "unk_token": end}
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [end]), config, "gpt2"


def _llama3():
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    specials = [begin, end, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    template = processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 0)])
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    post = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": "<|eot_id|>"}
    config["added_tokens_decoder"] = {
        str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, s in enumerate(specials)
    }
    return _byte_level(split, specials, post), config, "llama"


def _qwen():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pattern = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}
    config |= {"pad_token": {"content": "<|endoftext|>", "lstrip": False, "rstrip": False, "normalized": False, "__type": "AddedToken"}}
    return _byte_level(split, specials, normalizer=normalizers.NFC()), config, "qwen2"


def _smollm():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return _byte_level(digits, specials), config | {"unk_token": "<|endoftext|>"}, "llama"


def _sentencepiece(strip: bool, post: bool) -> Tokenizer:
    """BPE over "▁words" with a token for each byte, as converted from sentencepiece."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    prepend = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁]+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=70,
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for text in corpus() for line in text.split("\n")], trainer)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if strip else []))
    if post:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return tokenizer


def _llama2(tokenizer_class="LlamaTokenizer", **extra):
    config = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **extra}
    return _sentencepiece(strip=True, post=True), config | {"add_bos_token": True, "add_eos_token": False}, "llama"


def _gemma():
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return _sentencepiece(strip=False, post=True), config, "llama"


_MAKERS = {
    "gpt2": _gpt2,
    "llama3": _llama3,
    "qwen": _qwen,
    "smollm": _smollm,
    "llama2": lambda: _llama2(legacy=False),
    "llama2_legacy": lambda: _llama2(legacy=True),
    "llama2_file": lambda: _llama2("PreTrainedTokenizerFast"),
    "gemma": _gemma,
}
