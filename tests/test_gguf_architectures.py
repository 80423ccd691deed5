"""GGUF by architecture: a random checkpoint of transformers, written as llama.cpp's converter would (names from the gguf
package's own table), read here: the folder's logits, and llama.cpp's."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch to make models")
transformers = pytest.importorskip("transformers", reason="needs transformers to make models")
gguf = pytest.importorskip("gguf", reason="needs the gguf package's tables of names")

from gguf_files import SEED, logits_of  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from test_formats_gguf import llama, llama_logits  # noqa: E402,F401

import genkit  # noqa: E402
from genkit import models  # noqa: E402

SMALL = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)
MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=64)
LONG = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
            long_factor=[1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0], original_max_position_embeddings=256)
# GGUF's architecture, transformers' model_type and configuration.
CASES = {
    "llama": ("llama", "llama", dict(head_dim=16)),
    "mixtral": ("llama", "mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen3": ("qwen3", "qwen3", dict(head_dim=32)),
    "qwen2_moe": ("qwen2moe", "qwen2_moe", MOE | dict(shared_expert_intermediate_size=96)),
    "qwen3_moe": ("qwen3moe", "qwen3_moe", MOE | dict(head_dim=32, norm_topk_prob=True)),
    "olmoe": ("olmoe", "olmoe", dict(num_experts=6, num_experts_per_tok=2, num_key_value_heads=4)),
    "gemma2": ("gemma2", "gemma2", dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=40)),
    "gemma3": ("gemma3", "gemma3_text", dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=40, num_hidden_layers=7)),
    "phi": ("phi2", "phi", dict(num_key_value_heads=4, intermediate_size=256)),
    "phi3": ("phi3", "phi3", dict(original_max_position_embeddings=256, pad_token_id=0)),
    "phi3-longrope": ("phi3", "phi3", dict(rope_parameters=LONG, original_max_position_embeddings=256, pad_token_id=0,
                                           max_position_embeddings=2048)),
    "starcoder2": ("starcoder2", "starcoder2", {}),
    "olmo2": ("olmo2", "olmo2", {}),
    "granite": ("granite", "granite", dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5,
                                           logits_scaling=2.0)),
    "stablelm": ("stablelm", "stablelm", {}),
    "cohere2": ("cohere2", "cohere2", dict(sliding_window=40, num_hidden_layers=5, head_dim=16)),
    "smollm3": ("smollm3", "smollm3", dict(num_hidden_layers=5, pad_token_id=0, bos_token_id=0, eos_token_id=0)),
    "glm4": ("glm4", "glm4", dict(head_dim=16, pad_token_id=0)),
    "gpt_oss": ("gpt-oss", "gpt_oss", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=40,
                                           rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "gpt_neox": ("gptneox", "gpt_neox", dict(intermediate_size=256)),
    "falcon": ("falcon", "falcon", dict(new_decoder_architecture=True, num_kv_heads=2)),
    "falcon-multi-query": ("falcon", "falcon", {}),
    "bloom": ("bloom", "bloom", dict(n_layer=3, n_head=4)),
    "gpt2": ("gpt2", "gpt2", dict(n_embd=64, n_layer=3, n_head=4, n_positions=256)),
}
# llama.cpp takes it from a table of float16.
GELU = {"gemma2", "gemma3", "phi", "starcoder2", "gpt_neox", "falcon", "falcon-multi-query", "bloom", "gpt2"}
# Sizes that go by other names, or are none of the configuration's.
OTHER_SIZES = {"gpt2": [key for key in SMALL if key != "vocab_size"], "gpt_neox": ["num_key_value_heads"],
               "bloom": ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"],
               "falcon": ["num_key_value_heads", "intermediate_size"]}


def make_folder(name, folder):
    """A random model: no parameter is zero or one."""
    _, kind, changes = CASES[name]
    drop = OTHER_SIZES.get(kind, ())
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in (SMALL | changes).items() if k not in drop})
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, value in model.named_parameters():
            scale = 0.2 if value.ndim == 1 else value.shape[-1] ** -0.5
            value.copy_(torch.randn(value.shape) * scale + ("norm" in key and "weight" in key and value.ndim == 1
                                                            and not kind.startswith("gemma")))
    model.save_pretrained(folder)
    return folder


def interleaved(values, heads):
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def fused(values, heads, groups):
    """Rows by group of heads -> queries, keys, values."""
    parts = values.reshape(groups, heads // groups + 2, -1, *values.shape[1:])
    return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in (parts[:, :-2], parts[:, -2], parts[:, -1])])


def write_gguf(name, folder, out):
    """As llama.cpp's converter does it, in F32."""
    architecture, kind, _ = CASES[name]
    c = json.loads((folder / "config.json").read_text())
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    first = lambda *keys: next((c[key] for key in keys if c.get(key) is not None), None)  # noqa: E731
    layers, heads = first("num_hidden_layers", "n_layer"), first("num_attention_heads", "n_head")
    width = first("hidden_size", "n_embd")
    kv_heads = first("num_kv_heads", "num_key_value_heads") or heads
    if kind == "falcon" and not c["new_decoder_architecture"]:
        kv_heads = 1
    head_dim = first("head_dim") or width // heads
    writer = gguf.GGUFWriter(str(out), architecture)
    writer.add_block_count(layers), writer.add_embedding_length(width), writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_context_length(first("max_position_embeddings", "n_positions") or 256)
    writer.add_feed_forward_length(first("intermediate_size", "ffn_hidden_size", "n_inner") or 4 * width)
    writer.add_key_length(head_dim), writer.add_value_length(head_dim), writer.add_vocab_size(c["vocab_size"])
    if c.get("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"))
    rope = c.get("rope_parameters") or {}
    flat = rope.get("full_attention", rope)
    if flat:
        writer.add_rope_freq_base(flat["rope_theta"])
        rotated = flat.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
        writer.add_rope_dimension_count(int(head_dim * rotated))
    if flat.get("rope_type") == "longrope":
        stretch = c["max_position_embeddings"] / c["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(c["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(stretch) / np.log(c["original_max_position_embeddings"]))))
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.array(flat[f"{which}_factor"], np.float32))
    for add, key in ((writer.add_attn_logit_softcapping, "attn_logit_softcapping"), (writer.add_logit_scale, "logits_scaling"),
                     (writer.add_final_logit_softcapping, "final_logit_softcapping"), (writer.add_logit_scale, "logit_scale"),
                     (writer.add_attention_scale, "attention_multiplier"), (writer.add_embedding_scale, "embedding_multiplier"),
                     (writer.add_residual_scale, "residual_multiplier"), (writer.add_parallel_residual, "use_parallel_residual"),
                     (writer.add_expert_used_count, "num_experts_per_tok"),
                     (writer.add_expert_feed_forward_length, "moe_intermediate_size"),
                     (writer.add_expert_shared_feed_forward_length, "shared_expert_intermediate_size")):
        if c.get(key) is not None:
            add(c[key])
    if first("num_local_experts", "num_experts"):
        writer.add_expert_count(first("num_local_experts", "num_experts"))
    if kind == "gpt_oss":
        writer.add_expert_feed_forward_length(c["intermediate_size"])
    if kind in ("gemma2", "gemma3_text", "cohere2", "gpt_oss"):
        writer.add_sliding_window(c["sliding_window"])
    if kind == "phi3":
        writer.add_sliding_window(0)
    names = gguf.get_tensor_name_map(next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture), layers)
    experts = {}
    for key, values in tensors.items():
        if key.endswith("rotary_emb.inv_freq") or key == "lm_head.weight" and c.get("tie_word_embeddings"):
            continue
        if key.endswith("norm.weight") and kind.startswith("gemma"):
            values = values + np.float32(1)
        if architecture in ("llama", "granite", "smollm3"):
            for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
                values = interleaved(values, count) if f".{part}." in key else values
        if "query_key_value" in key:
            values = fused(values, heads, kv_heads)
        if kind == "gpt2" and values.ndim == 2 and ".h." in key:
            values = values.T
        if key.endswith("shared_expert_gate.weight"):
            values = values.reshape(-1)
        if ".experts.gate_up_proj" in key or ".experts.down_proj" in key:  # gpt-oss: all in one, [experts, in, out]
            stem, part = key.rsplit(".", 1)
            suffix = ".bias" if part.endswith("_bias") else ".weight"
            values = values if suffix == ".bias" else values.swapaxes(1, 2)
            for each, piece in ((("gate_proj", values[:, ::2]), ("up_proj", values[:, 1::2])) if part.startswith("gate")
                                else (("down_proj", values),)):
                found = names.get_name(f"{stem}.{each}{suffix}", try_suffixes=(".weight", ".bias"))
                writer.add_tensor(found, np.ascontiguousarray(piece))
            continue
        if ".experts." in key:
            stem, rest = key.split(".experts.")
            number, part = rest.split(".", 1)
            experts.setdefault(f"{stem}.experts.{part}", {})[int(number)] = values
            continue
        key = key + ".weight" if key.endswith(".sinks") else key
        found = names.get_name(key.removeprefix("transformer.") if kind == "bloom" else key, try_suffixes=(".weight", ".bias"))
        assert found, key
        writer.add_tensor(found, np.ascontiguousarray(values, np.float32))
    for key, parts in experts.items():
        key = key.replace("model.", "").replace("block_sparse_moe", "feed_forward") if kind == "mixtral" else key
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert found, key
        writer.add_tensor(found, np.stack([parts[i] for i in range(len(parts))]).astype(np.float32))
    writer.add_tokenizer_model("no_vocab")
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] in models.ARCHITECTURES])
def test_architecture(tmp_path, request, name):
    folder, path = make_folder(name, tmp_path / "model"), tmp_path / "model.gguf"
    write_gguf(name, folder, path)
    ids = np.random.default_rng(SEED).integers(3, 320, 90).tolist()
    expected = genkit.load(folder, kv_type="f32").logits(ids)
    found = logits_of(path, ids)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return
    theirs = request.getfixturevalue("llama")(llama_logits, path, ids)
    error = np.linalg.norm(theirs - expected) / np.linalg.norm(expected)
    print(f"{name}: {error:.1e}")
    assert error < (1e-3 if name in GELU else 2e-5)
