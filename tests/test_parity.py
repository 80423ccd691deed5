"""Every architecture against transformers in float32, on random checkpoints of awkward shapes.

On the best tier that does not round what goes into a product (test_models.py bounds what the others change). Logits
within 1e-3, 64 greedy tokens equal, one token at a time as the whole prompt, beam search equal to generate's.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch to compare with")
transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")

import kernel_helpers  # noqa: E402
import make_goldens as reference  # noqa: E402
import models_run  # noqa: E402

import genkit  # noqa: E402
from genkit import _core  # noqa: E402

TOLERANCE = 1e-3
PROMPT = 150  # tokens: more than two pages, more than the lengths that rope scaling stretches, more than the windows


def llama(**changes):
    sizes = dict(vocab_size=1003, hidden_size=112, intermediate_size=173, num_hidden_layers=2, num_attention_heads=14,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512, rms_norm_eps=1e-5)
    return transformers.LlamaConfig(**(sizes | changes))


def llama_rope(positions=512, **rope):
    rope.setdefault("rope_theta", 10000.0)
    return llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24, vocab_size=509,
                 max_position_embeddings=positions, rope_parameters=rope)


def mistral(**changes):
    sizes = dict(vocab_size=1003, hidden_size=96, intermediate_size=151, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512, sliding_window=50)
    return transformers.MistralConfig(**(sizes | changes))


def qwen2(**changes):
    sizes = dict(vocab_size=1003, hidden_size=112, intermediate_size=173, num_hidden_layers=3, num_attention_heads=7,
                 num_key_value_heads=1, max_position_embeddings=512, rope_parameters={"rope_theta": 1e6})
    return transformers.Qwen2Config(**(sizes | changes))


def qwen3(**changes):
    sizes = dict(vocab_size=1003, hidden_size=72, intermediate_size=139, num_hidden_layers=3, num_attention_heads=14,
                 num_key_value_heads=2, head_dim=80, max_position_embeddings=512)
    return transformers.Qwen3Config(**(sizes | changes))


def gpt2(**changes):
    sizes = dict(vocab_size=1003, n_embd=240, n_layer=2, n_head=3, n_positions=256, n_inner=301, bos_token_id=None,
                 eos_token_id=0)
    return transformers.GPT2Config(**(sizes | changes))


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    # name: (configuration, type of the weights on disk, largest shard)
    "llama-head80-7-a-kv-head": (llama(), F32, "2GB"),
    "llama-head96-multi-query-tied": (
        llama(hidden_size=100, num_attention_heads=4, num_key_value_heads=1, head_dim=96, tie_word_embeddings=True),
        BF16, "2GB"),
    "llama-multi-head-biases-sharded": (
        llama(hidden_size=96, num_attention_heads=6, num_key_value_heads=6, head_dim=None, attention_bias=True,
              mlp_bias=True, rms_norm_eps=0.1), F16, "100KB"),
    "llama-gelu": (llama(hidden_act="gelu", vocab_size=33), BF16, "2GB"),
    "llama-gelu-tanh": (llama(hidden_act="gelu_pytorch_tanh", intermediate_size=33), F32, "200KB"),
    "llama-one-layer": (llama(num_hidden_layers=1, head_dim=6, vocab_size=65), F32, "2GB"),
    "llama-theta": (llama_rope(rope_type="default", rope_theta=500000.0), F32, "2GB"),
    "llama-linear": (llama_rope(128, rope_type="linear", factor=4.0), F32, "2GB"),
    "llama-dynamic": (llama_rope(100, rope_type="dynamic", factor=3.0), F32, "2GB"),
    "llama-dynamic-grows-while-writing": (llama_rope(170, rope_type="dynamic", factor=2.5), F32, "2GB"),
    "llama-llama3": (llama_rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                original_max_position_embeddings=60), F32, "2GB"),
    "llama-yarn": (llama_rope(**YARN), F32, "2GB"),
    "llama-yarn-own-length": (llama_rope(100, rope_type="yarn", factor=3.0), F32, "2GB"),
    "llama-yarn-mscale": (llama_rope(**YARN, mscale=1.0, mscale_all_dim=0.7, beta_fast=2.0, beta_slow=0.5), F32, "2GB"),
    "llama-yarn-attention-factor": (llama_rope(**YARN, attention_factor=1.4, truncate=False), F32, "2GB"),
    "mistral-window": (mistral(), F32, "2GB"),
    # Not 1: transformers' cache then keeps every key, and its cached text differs from its own without a cache.
    "mistral-window-2": (mistral(sliding_window=2), F32, "2GB"),
    "mistral-window-of-a-page": (mistral(sliding_window=64, head_dim=None), BF16, "2GB"),
    "mistral-no-window": (mistral(sliding_window=None, num_key_value_heads=1), F16, "2GB"),
    "qwen2": (qwen2(), BF16, "2GB"),
    "qwen2-window-on-late-layers": (qwen2(use_sliding_window=True, sliding_window=40, max_window_layers=1), F32, "2GB"),
    "qwen2-layer-types-tied-yarn": (
        qwen2(num_attention_heads=8, num_key_value_heads=8, use_sliding_window=True, sliding_window=33,
              tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6} | YARN,
              layer_types=["sliding_attention", "full_attention", "sliding_attention"]), F16, "2GB"),
    "qwen3": (qwen3(), F32, "2GB"),
    "qwen3-tied-biases-default-head": (
        qwen3(num_attention_heads=3, num_key_value_heads=1, head_dim=128, attention_bias=True,
              rms_norm_eps=0.1, tie_word_embeddings=True), BF16, "150KB"),
    "qwen3-layer-types": (
        qwen3(use_sliding_window=True, sliding_window=29, num_attention_heads=4,
              layer_types=["full_attention", "sliding_attention", "full_attention"]), F32, "2GB"),
    "gpt2": (gpt2(layer_norm_epsilon=0.1), F32, "2GB"),
    "gpt2-untied-by-layer": (gpt2(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, n_layer=3), BF16,
                             "300KB"),
    "gpt2-unscaled-gelu": (gpt2(n_embd=60, n_head=5, n_inner=None, scale_attn_weights=False,
                                activation_function="gelu"), F16, "2GB"),
}
BEAMS = ["llama-head80-7-a-kv-head", "llama-multi-head-biases-sharded", "llama-dynamic-grows-while-writing",
         "mistral-window", "qwen2", "qwen3", "gpt2"]


@pytest.fixture(scope="module", autouse=True)
def quiet_and_single_threaded():
    """The models are so small that threads only wait for each other; test_models.py compares thread counts."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    before = torch.get_num_threads(), _core.get_threads(), _core.current_tier()
    torch.set_num_threads(1)
    _core.set_threads(1)
    for tier in reversed(_core.tiers()):
        _core.use_tier(tier)
        if not kernel_helpers.rounds_rows():
            break
    yield
    torch.set_num_threads(before[0])
    _core.set_threads(before[1])
    _core.use_tier(before[2])


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    config, dtype, shard_size = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    prompt, tokens = reference.save_clear_checkpoint(config, folder, dtype, list(CASES).index(request.param), PROMPT,
                                                     shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size != "2GB")
    return SimpleNamespace(folder=folder, prompt=prompt, tokens=tokens, model=models_run.load(folder))


every_case = pytest.mark.parametrize("case", CASES, indirect=True)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return float(np.abs(a - b).max())


@every_case
def test_logits(case):
    expected = reference.reference_logits(case.folder, case.prompt)
    assert np.ptp(expected, axis=1).min() > 3  # lively
    assert distance(models_run.logits(case.model, case.prompt), expected) < TOLERANCE
    assert distance(genkit.load(case.folder, threads=1, kv_type="f32").logits(case.prompt), expected) < TOLERANCE


@every_case
def test_greedy_tokens(case):
    tokens, _ = models_run.greedy(case.model, case.prompt, len(case.tokens))
    assert tokens == case.tokens
    model = genkit.load(case.folder, threads=1, kv_type="f32")
    made = model.generate(case.prompt, max_tokens=len(tokens), ignore_eos=True, temperature=0)
    assert made.tokens == case.tokens and made.finish_reason == "length"


@every_case
def test_one_token_at_a_time_is_the_whole_prompt(case):
    tokens, rows = models_run.greedy(case.model, case.prompt, len(case.tokens))
    if getattr(case.model.config, "rope", None) and case.model.config.rope.type == "dynamic":
        # Keys keep the rotation of the length they were written at, in transformers too: compare with its own steps.
        theirs = reference.load_reference(case.folder)
        with torch.no_grad():
            out = theirs(torch.tensor([case.prompt]), use_cache=True)
            expected = [out.logits[0, -1]]
            for token in tokens[:-1]:
                out = theirs(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
                expected.append(out.logits[0, -1])
        assert distance(rows, torch.stack(expected).numpy()) < TOLERANCE
    else:
        whole = models_run.logits(case.model, case.prompt + tokens[:-1])[len(case.prompt) - 1:]
        assert np.array_equal(rows, whole)


@pytest.mark.parametrize("length_penalty", [1.0, -0.5, 2.0])
@pytest.mark.parametrize("case", BEAMS, indirect=True)
def test_beam_search(case, length_penalty):
    """With no end, and with the greedy text's 12th token and three others for the end, so that beams finish early."""
    model = genkit.load(case.folder, threads=1, kv_type="f32")
    for beams in (2, 5):
        expected = beam_reference(case, beams, length_penalty, eos=None)
        made = model.generate(case.prompt, beams=beams, length_penalty=length_penalty, max_tokens=32, ignore_eos=True)
        assert made.tokens == expected, beams
    ends = [case.tokens[12], *reference.random_prompt(model.config.vocab_size, 3, 7)]
    path = case.folder / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps({"eos_token_id": ends}))
    try:
        model = genkit.load(case.folder, threads=1, kv_type="f32")
    finally:
        path.write_text(before)
    for beams in (2, 5):
        expected = beam_reference(case, beams, length_penalty, eos=ends)
        made = model.generate(case.prompt, beams=beams, length_penalty=length_penalty, max_tokens=32)
        assert made.tokens == expected, (beams, ends)


def beam_reference(case, beams: int, length_penalty: float, eos: list[int] | None) -> list[int]:
    with torch.no_grad():
        out = reference.load_reference(case.folder).generate(
            torch.tensor([case.prompt]), attention_mask=torch.ones(1, len(case.prompt), dtype=torch.int64),
            num_beams=beams, do_sample=False, max_new_tokens=32, length_penalty=length_penalty, eos_token_id=eos,
            pad_token_id=0)
    tokens = out[0, len(case.prompt):].tolist()
    # What follows an end is padding.
    end = next((i for i, token in enumerate(tokens) if token in (eos or ())), len(tokens))
    return tokens[:end + 1]


@pytest.mark.parametrize("partial", [0.25, 0.5, 0.3])
def test_partial_rotation(partial, tmp_path):
    """transformers' Llama rotates whole heads; its Phi-3 is the same arithmetic under other names, and takes a part."""
    from safetensors.torch import load_file, save_file

    config = transformers.Phi3Config(
        vocab_size=503, hidden_size=160, intermediate_size=131, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=512, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": partial})
    reference.save_checkpoint(config, tmp_path / "phi3", F32, seed=5)
    prompt = reference.random_prompt(503, PROMPT, 5)
    expected = reference.reference_logits(tmp_path / "phi3", prompt)

    tensors = {}
    for name, tensor in load_file(tmp_path / "phi3" / "model.safetensors").items():
        if "qkv_proj" in name:
            for part, rows in zip("qkv", tensor.split([160, 80, 80])):
                tensors[name.replace("qkv", part)] = rows.contiguous()
        elif "gate_up_proj" in name:
            for part, rows in zip(("gate", "up"), tensor.chunk(2)):
                tensors[name.replace("gate_up", part)] = rows.contiguous()
        else:
            tensors[name] = tensor
    folder = tmp_path / "llama"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    fields = json.loads((tmp_path / "phi3" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "llama"}))
    assert distance(models_run.logits(models_run.load(folder), prompt), expected) < TOLERANCE


@pytest.mark.parametrize("case", [name for name in CASES if "gpt2" not in name], indirect=True)
def test_old_spelling(case, tmp_path):
    """config.json as transformers 4 wrote it gives the same bits, and transformers reads it as the same model too."""
    fields = json.loads((case.folder / "config.json").read_text())
    rope = dict(fields.pop("rope_parameters"))
    fields |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": fields.pop("dtype")}
    kind = rope.pop("rope_type")
    if "layer-types" not in case.folder.name:
        fields.pop("layer_types", None)  # newer than max_window_layers, from which it follows
    fields["rope_scaling"] = None if kind == "default" else rope | {"type": kind}
    folder = tmp_path / "old"
    folder.mkdir()
    for path in case.folder.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    (folder / "config.json").write_text(json.dumps(fields))
    got = models_run.logits(models_run.load(folder), case.prompt)
    assert np.array_equal(got, models_run.logits(case.model, case.prompt))
    assert distance(got, reference.reference_logits(folder, case.prompt)) < TOLERANCE


# The published sizes, from the models' own config.json files.
PUBLISHED = {
    "llama-2-7b": ("llama", dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000,
                                 num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096)),
    "llama-3.2-1b": ("llama", dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=128256,
                                   num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                                   tie_word_embeddings=True, max_position_embeddings=131072,
                                   rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                                                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                    "original_max_position_embeddings": 8192})),
    "tinyllama-1.1b": ("llama", dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, vocab_size=32000,
                                     num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048)),
    "smollm2-135m": ("llama", dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49152,
                                   num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                                   max_position_embeddings=8192)),
    "mistral-7b-v0.1": ("mistral", dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                        vocab_size=32000, num_attention_heads=32, num_key_value_heads=8,
                                        sliding_window=4096, max_position_embeddings=32768)),
    "qwen2.5-0.5b": ("qwen2", dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, vocab_size=151936,
                                   num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
                                   max_window_layers=24, max_position_embeddings=32768)),
    "qwen3-0.6b": ("qwen3", dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, vocab_size=151936,
                                 num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
                                 max_position_embeddings=40960)),
    "gpt2": ("gpt2", {}),
    "gpt2-xl": ("gpt2", dict(n_embd=1600, n_head=25, n_layer=48)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_sizes(name, tmp_path):
    """Names and shapes asked of a checkpoint are those of transformers' model of that size, none left over."""
    from genkit.checkpoints import Checkpoint, Fields, TensorInfo
    from genkit.models import read_model_config
    from genkit.quant.roles import survey

    model_type, sizes = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        held = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del held["lm_head.weight"]
    tensors = {key: TensorInfo("bf16", tuple(value.shape), tmp_path / "model.safetensors", 0, 2 * value.numel())
               for key, value in held.items()}
    fields = Fields(tmp_path / "config.json", json.loads(config.to_json_string(use_diff=False)))
    checkpoint = Checkpoint(tmp_path, tensors, {})
    roles, made = survey(fields, checkpoint), read_model_config(fields, checkpoint)
    assert set(roles.matrices) | set(roles.others) == set(held)
    assert made.max_positions == config.max_position_embeddings and made.vocab_size == config.vocab_size
