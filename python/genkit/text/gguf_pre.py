"""llama.cpp's named ways to cut a text into words before its bytes are merged (tokenizer.ggml.pre), as tokenizer.json spells
them: regular expressions, one after the other, each over what the one before left whole.

Where llama.cpp's own expression is a stand-in for what its engine lacks (upper and lower case, possessive repeats), the
original tokenizer's stands here.
"""

# Regular expressions that cut a text into words, one after the other, as tokenizer.json spells them.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
_WORD = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
         r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_LETTERS = (r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-"
            r"ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ"
            r"-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+")
# llama.cpp's name -> the expressions, and whether a word that is a token is taken whole
PRE: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "llama-bpe": ((_LLAMA3,), True),
    "smaug-bpe": ((_LLAMA3,), False),
    "qwen2": ((_QWEN2,), False),
    "qwen35": ((_QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),), False),
    "smollm": ((_DIGIT, _GPT2), False),
    "tekken": ((_WORD % ("", "", _DIGIT),), True),
    "gpt-4o": ((_WORD % (_SHORT, _SHORT, r"\p{N}{1,3}"),), False),
    "deepseek-coder": (("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT), False),
    "deepseek-v3": ((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
                     "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                     "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), False),
    "deepseek-llm": (("[\r\n]", _LETTERS, '\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+', r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+"), False),
    "falcon": ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"), False),
    "bloom": ((" ?[^(\\s|.,!?…。，、।۔،)]+",), False),
    "viking": ((" ?[^(\\s|.,!?…。，、।۔،)]+", _DIGIT), False),
    "bailingmoe": ((r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
                    r"|\s+(?!\S)|\s+",), False),
    "seed-coder": ((r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
                    r"|\s+(?!\S)|\s+",), False),
    "exaone-moe": ((r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
                    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",), False),
    "tiny_aya": ((r"\d{1,3}(?=(?:\d{3})*\b)", _WORD % (_SHORT, _SHORT, r"\p{N}{1,3}")), False),
    "minicpm5": ((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), True),
    "jais-2": ((_LLAMA3.removesuffix(r"|\s+(?!\S)|\s+")
                + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}",), False),
    "ufakzeka": ((_QWEN2.removeprefix("(?i:'s|'t|'re|'ve|'m|'ll|'d)|"),), False),
    "laguna": ((r"[^\n]+|[\n]+", _QWEN2), False),
    "default": ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), False),
}
# Other names of the same, in files that others made.
ALIASES = {name: known for known, names in {
    "gpt-2": "gpt2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert olmo mpt jais exaone4 trillion "
             "granite-docling",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "smaug-bpe": "dbrx glm4 chatglm-bpe",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "bloom": "poro-chat gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
    "tiny_aya": "cohere2moe",
}.items() for name in names.split()}
BEGINS = {"llama-bpe", "tekken"}  # whose texts begin with bos where the file says nothing
COMPOSES = {"qwen2", "deepseek-r1-qwen", "qwen35"}  # whose originals put characters together first (NFC); llama.cpp does not
