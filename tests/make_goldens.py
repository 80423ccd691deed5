"""Makes the committed goldens: small random checkpoints, and what transformers says about them.

    pip install torch transformers
    python tests/make_goldens.py            # rewrites tests/fixtures/

Each folder holds a checkpoint of one architecture with random weights (seeded), as transformers' save_pretrained writes
it, and golden.safetensors: `prompt` (token ids), `logits` (float32 [prompt, vocab], transformers in float32 on the same
weights), `tokens` (greedy continuation). test_models.py compares with them where torch is not installed.
The functions below also serve test_parity.py.
"""

import pathlib

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FIXTURES = pathlib.Path(__file__).parent / "fixtures"

# Shapes are awkward on purpose: odd widths, 7 query heads a KV head, a vocabulary that is no multiple of 16.
GOLDENS = {
    "llama": (transformers.LlamaConfig(
        vocab_size=307, hidden_size=56, intermediate_size=75, num_hidden_layers=2, num_attention_heads=7,
        num_key_value_heads=1, head_dim=20, max_position_embeddings=256, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32}), torch.bfloat16),
    "mistral": (transformers.MistralConfig(
        vocab_size=211, hidden_size=48, intermediate_size=67, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, sliding_window=21), torch.float16),
    "qwen2": (transformers.Qwen2Config(
        vocab_size=307, hidden_size=56, intermediate_size=91, num_hidden_layers=2, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, use_sliding_window=True,
        sliding_window=30, max_window_layers=1), torch.bfloat16),
    "qwen3": (transformers.Qwen3Config(
        vocab_size=307, hidden_size=40, intermediate_size=77, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=256, tie_word_embeddings=True), torch.float16),
    "gpt2": (transformers.GPT2Config(
        vocab_size=307, n_embd=54, n_layer=2, n_head=3, n_positions=160, n_inner=101,
        bos_token_id=None, eos_token_id=0), torch.float32),
}
EMBEDDINGS = ("wte.weight", "embed_tokens.weight", "lm_head.weight", "embed_in.weight", "embed_out.weight",
              "word_embeddings.weight")
PROMPT = 75  # tokens: more than a page of the KV cache
CONTINUATION = 64


def randomize(model: torch.nn.Module, seed: int, hidden: int | None = None) -> None:
    """Weights such that every part shows in the logits: scores and logits a few units wide, norms and biases unlike.

    Freshly made transformers models are near uniform (logits of 0.02) with norms of 1 and biases of 0, which hides most
    mistakes.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    hidden = hidden or model.config.hidden_size
    middle = 0 if model.config.model_type.startswith("gemma") else 1  # of norms: Gemma adds the one itself
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(EMBEDDINGS):
                tensor.copy_(normal(tensor, 3 / hidden**0.5))  # logits have a deviation of 3, tied or not
            elif name.endswith("wpe.weight"):
                tensor.copy_(normal(tensor, 0.7))
            elif tensor.ndim == 2:
                conv1d = model.config.model_type == "gpt2"  # [in, out] there
                tensor.copy_(normal(tensor, 1.5 / tensor.shape[0 if conv1d else 1] ** 0.5))
            elif tensor.ndim == 3:  # of all experts, [out, in] each, or [in, out]
                turned = model.config.model_type == "gpt_oss"
                tensor.copy_(normal(tensor, 1.5 / tensor.shape[1 if turned else 2] ** 0.5))
            elif name.endswith(("_bias", ".bias")):
                tensor.copy_(normal(tensor, 0.3))
            else:
                tensor.copy_(middle + normal(tensor, 0.25))
        for name, tensor in model.named_buffers():
            if name.endswith("_correction_bias"):
                tensor.copy_(normal(tensor, 0.2))


def save_checkpoint(config, folder: pathlib.Path, dtype: torch.dtype = torch.float32, seed: int = 0,
                    shard_size: str = "2GB") -> None:
    """A random model of this configuration in a folder, its weights stored as dtype."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)


def load_reference(folder: pathlib.Path):
    """transformers' model of a folder, in float32 on the folder's weights, the plain attention. A new one each time:
    with dynamic rope a used one remembers the longest sequence it saw."""
    config = transformers.AutoConfig.from_pretrained(folder)
    # Falcon's plain attention of transformers 5 adds ALiBi twice.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention,
                                                              experts_implementation="eager")
    return model.eval()


def reference_logits(folder: pathlib.Path, tokens: list[int]) -> np.ndarray:
    """float32 [tokens, vocab] of one forward pass over the whole prompt."""
    with torch.no_grad():
        return load_reference(folder)(torch.tensor([tokens])).logits[0].float().numpy()


def reference_generate(folder: pathlib.Path, tokens: list[int], count: int, **settings) -> tuple[list[int], float]:
    """`count` tokens from transformers' generate, greedy unless settings say else, and the smallest distance between
    the best and second best logit on the way (greedy only): a tie would make the comparison a matter of rounding."""
    with torch.no_grad():
        out = load_reference(folder).generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.int64), do_sample=False,
            max_new_tokens=count, min_new_tokens=count, eos_token_id=None, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True, **settings)
    best = torch.stack(out.logits)[:, 0].topk(2).values
    return out.sequences[0, len(tokens):].tolist(), float((best[:, 0] - best[:, 1]).min())


def random_prompt(vocab: int, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def save_clear_checkpoint(config, folder: pathlib.Path, dtype: torch.dtype, seed: int, prompt_length: int = PROMPT,
                          shard_size: str = "2GB", distinct: int = CONTINUATION // 4) -> tuple[list[int], list[int]]:
    """A random checkpoint, a prompt and its greedy continuation, from the first seed in 100 * seed, 100 * seed + 1, ...
    that passes no near tie (where two tokens are equally good, which one is taken is a matter of rounding) and does not
    repeat itself at once: `distinct` tokens of it differ."""
    for attempt in range(100 * seed, 100 * seed + 20):
        save_checkpoint(config, folder, dtype, attempt, shard_size)
        prompt = random_prompt(config.vocab_size, prompt_length, attempt)
        tokens, margin = reference_generate(folder, prompt, CONTINUATION)
        if margin > 0.005 and len(set(tokens)) >= min(distinct, config.vocab_size // 4):
            return prompt, tokens
    raise RuntimeError(f"no seed gives a clear continuation for {config}")


def main() -> None:
    transformers.logging.disable_progress_bar()
    for seed, (name, (config, dtype)) in enumerate(GOLDENS.items()):
        folder = FIXTURES / name
        folder.mkdir(parents=True, exist_ok=True)
        prompt, tokens = save_clear_checkpoint(config, folder, dtype, seed)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_file({"prompt": np.array(prompt, np.int32), "tokens": np.array(tokens, np.int32),
                   "logits": reference_logits(folder, prompt)}, folder / "golden.safetensors")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size / 1024:.0f} KiB, {len(set(tokens))} distinct tokens")


if __name__ == "__main__":
    main()
