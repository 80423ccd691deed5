"""genkit through its public interface, its own clock for the prompt and for the tokens after the first."""

import genkit
from genkit import _core, checkpoints
from genkit.kv_cache import PAGE_KEYS, page_bytes
from genkit.quant import formats

BITS = {"f32": 32, "f16": 16, "bf16": 16}


class Driver:
    def __init__(self, quantize: str) -> None:
        self.quantize = quantize
        self.model = None

    def about(self) -> dict:
        return {"version": f"genkit {genkit.__version__}", "notes": f"tier {_core.current_tier()}"}

    def load(self, path: str, threads: int, context: int) -> dict:
        self.model = genkit.load(path, device="cpu", threads=threads, quantize=self.quantize)
        return {"seconds": self.model.load_s, "work": self._work()}

    def _work(self) -> dict:
        """What one token costs at the least, from which a row's share of the machine's limits follows."""
        config = self.model.config
        with checkpoints.open_checkpoint(self.model.folder) as checkpoint:
            matrices = {name: info for name, info in checkpoint.tensors.items() if len(info.shape) == 2}
        # Of the table of embeddings a token reads one row, unless it is the head as well.
        head = config.vocab_size * config.hidden_size
        numbers = sum(info.shape[0] * info.shape[1] for info in matrices.values())
        numbers -= head if "lm_head.weight" in matrices else 0
        dtype = max((info.dtype for info in matrices.values()), key=lambda dtype: BITS.get(dtype, 0))
        bits = BITS[dtype] if self.quantize == "none" else formats.BY_NAME[self.quantize].bits
        return {
            "kind": "int8" if self.quantize != "none" else "bf16" if dtype == "bf16" else "f32",
            "weight_bytes": numbers * bits / 8,
            # Of one key and its value, over all layers.
            "kv_bytes": page_bytes(config.layers, config.kv_heads, config.head_dim, self.model.kv_type) / PAGE_KEYS,
            "layer_weights": numbers - head,
            "head_weights": head,
            "attention_width": config.layers * config.heads * config.head_dim,
        }

    def _generate(self, prompt: list, tokens: int):
        return self.model.generate(prompt, max_tokens=tokens, temperature=0, ignore_eos=True)

    def prefill(self, ids: list) -> float:
        return self._generate(ids, 1).timings.prefill_s

    def decode(self, ids: list, tokens: int) -> float:
        generation = self._generate(ids, tokens + 1)
        return _whole(generation, tokens + 1).timings.decode_s

    def batch(self, prompts: list, tokens: int) -> float:
        generations = self.model.generate(prompts, max_tokens=tokens + 1, temperature=0, ignore_eos=True)
        return max(_whole(generation, tokens + 1).timings.decode_s for generation in generations)


def _whole(generation, tokens: int):
    if len(generation.tokens) != tokens:
        raise RuntimeError(f"asked for {tokens} tokens, got {len(generation.tokens)}")
    return generation
