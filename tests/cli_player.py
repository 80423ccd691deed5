"""A model that plays back a script, for tests of the command: what it must print is known to the byte.

A gpt2 whose layer adds nothing and whose learned positions each point at the next byte of the script, so that the
byte-level tokenizer, the loader, the forward pass, sampling and streaming are all the real ones. The likeliest token at
position p is SCRIPT's byte p + 1 (one token a byte, so an emoji is four), and after the last one the end-of-text token.
"""

import json
from pathlib import Path

import numpy as np

# Multi-byte characters of every length, one made of several code points, and quotes for the JSON tests.
SCRIPT = 'Grüße, 世界! "Ein\tFuchs" 🦊👩‍🚀 läuft über den Fluß;\nμ ≤ ∞ — naïve café.\n'
END = "<|end|>"
CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


def make_player(folder: Path, *, context: int = 512, script: str = SCRIPT, loop: bool = False, chat: bool = False,
                sharpness: float = 1.0) -> Path:
    """Writes the model folder. `loop` repeats the script until the context is full; a low `sharpness` makes sampling
    differ from greedy."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
                                     merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    end = tokenizer.token_to_id(END)

    ids = tokenizer.encode(script).ids
    played = ids if loop else ids + [end] * (context - len(ids))
    width = -(-len(played) // 64) * 64
    vocab = 271  # more rows than tokens, and no multiple of 16
    head = np.zeros((vocab, width), np.float32)
    for position in range(len(played)):
        head[played[(position + 1) % len(played)], position] = sharpness
    random = np.random.default_rng(7)

    def noise(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    tensors = {
        "wte.weight": np.zeros((vocab, width), np.float32),
        "wpe.weight": np.eye(width, dtype=np.float32)[np.arange(context) % len(played)],
        "ln_f.weight": np.ones(width, np.float32),
        "ln_f.bias": np.zeros(width, np.float32),
        "h.0.ln_1.weight": noise(width), "h.0.ln_1.bias": noise(width),
        "h.0.ln_2.weight": noise(width), "h.0.ln_2.bias": noise(width),
        "h.0.attn.c_attn.weight": noise(width, 3 * width), "h.0.attn.c_attn.bias": noise(3 * width),
        "h.0.attn.c_proj.weight": np.zeros((width, width), np.float32), "h.0.attn.c_proj.bias": np.zeros(width, np.float32),
        "h.0.mlp.c_fc.weight": noise(width, 4 * width), "h.0.mlp.c_fc.bias": noise(4 * width),
        "h.0.mlp.c_proj.weight": np.zeros((4 * width, width), np.float32), "h.0.mlp.c_proj.bias": np.zeros(width, np.float32),
    }
    tensors = {"transformer." + name: tensor for name, tensor in tensors.items()} | {"lm_head.weight": head}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "gpt2", "vocab_size": vocab, "n_embd": width, "n_layer": 1, "n_head": width // 64,
              "n_positions": context, "tie_word_embeddings": False, "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer_config = {"eos_token": END} | ({"chat_template": CHAT_TEMPLATE} if chat else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def rest_of_script(prompt: str) -> str:
    """What the model prints after a prompt: the script from the prompt's length in bytes on."""
    return SCRIPT.encode()[len(prompt.encode()):].decode()
