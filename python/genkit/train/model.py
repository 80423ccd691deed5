"""The network: transformers' llama, its sizes, and how it runs fast while it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the network. `hidden` is `heads * head_dim`; `kv_heads` divides `heads`."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    context: int

    def check(self) -> None:
        """Raise UsageError for sizes that make no network."""
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.hidden % (2 * self.heads):
            raise UsageError(f"--hidden {self.hidden}: must be a multiple of twice --heads ({self.heads})")
        if self.heads % self.kv_heads:
            raise UsageError(f"--kv-heads {self.kv_heads}: must divide --heads ({self.heads})")
        if self.vocab < 257:
            raise UsageError(f"--vocab {self.vocab}: must be at least 257 (256 bytes and the end of text)")


# `small` is the default model: 10.2 million weights, 20 MB in bf16, the most that ships. `large` wants a GPU.
PRESETS = {
    "small": Sizes(vocab=6144, hidden=384, ffn=1024, layers=5, heads=3, kv_heads=1, context=1024),
    "large": Sizes(vocab=8192, hidden=768, ffn=2048, layers=12, heads=12, kv_heads=4, context=1024),
}

_ATTENTION = "genkit_causal_softmax"


def build_model(sizes: Sizes, seed: int, device: str) -> LlamaForCausalLM:
    """A fresh float32 network on `device`; projections back into the residual start smaller, by 1/sqrt(2 layers)."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from genkit.train.tokenizer import END_OF_TEXT_ID

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.ffn,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_OF_TEXT_ID,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1 / math.sqrt(2 * sizes.layers))
            layer.mlp.down_proj.weight.mul_(1 / math.sqrt(2 * sizes.layers))
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.95, eos_token_id=END_OF_TEXT_ID, bos_token_id=None
    )
    return model.to(device)


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (bf16, tied head stored once)."""
    import copy

    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for a hundredth of a second
    saved = copy.deepcopy(model).to("cpu", torch.bfloat16)
    saved.set_attn_implementation("sdpa")
    saved.save_pretrained(str(folder))
    # safetensors writes through a private temporary file; the model is for whoever may read its folder.
    weights = folder / "model.safetensors"
    weights.chmod((folder / "config.json").stat().st_mode)


def loss_function(model: LlamaForCausalLM, device: str, precision: str, compiled: bool):
    """A function (inputs int64 `[n, t]`, targets int64 `[n, t]`) -> mean cross-entropy in nats, float32.

    `precision` bf16 runs the matrix products in bfloat16 (weights and sums stay float32); `compiled` fuses the
    elementwise work with torch.compile, about a third faster on CPU.
    """
    import torch
    import torch.nn.functional as F

    if device == "cpu":
        _use_cpu_attention(model)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    if not compiled:
        return loss
    fused = torch.compile(loss, dynamic=False)

    def compiled_loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        try:
            return fused(inputs, targets)
        except torch._dynamo.exc.TorchDynamoException as error:
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UsageError(f"--compile: torch.compile failed ({first.strip()}); use --no-compile") from error

    return compiled_loss


def _use_cpu_attention(model: LlamaForCausalLM) -> None:
    """Attention as two batched products and one softmax. With torch.compile this is faster on CPU, as long as the
    scores of a micro-batch fit the cache, than torch's own flash kernel: 21 against 51 ms for a layer of 3 heads over
    8 windows of 512, forward and backward, on two Zen 5 cores."""
    import torch
    from transformers import AttentionInterface

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        n, heads, length, dim = query.shape
        groups = heads // key.shape[1]
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        scores = (query @ key.transpose(-1, -2)).float() * scaling
        position = torch.arange(length, device=query.device)
        scores = scores.masked_fill(position[None, :] > position[:, None], float("-inf"))
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register(_ATTENTION, attend)
    model.set_attn_implementation(_ATTENTION)


def choose_device(device: str) -> str:
    """`auto` becomes cuda when torch sees one, else cpu; cuda without a GPU raises DeviceError."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA GPU; use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def choose_precision(precision: str, device: str) -> str:
    """`auto` becomes bf16 where the processor multiplies it natively, else fp32."""
    import torch

    if precision not in ("auto", "bf16", "fp32"):
        raise UsageError(f"--precision {precision}: use auto, bf16 or fp32")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
