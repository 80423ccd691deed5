"""Every architecture against transformers in float32, on random checkpoints of awkward shapes.

On the best tier that does not round what goes into a product (test_models.py bounds what the others change). Logits
within 1e-3, 64 greedy tokens equal, one token at a time as the whole prompt, beam search equal to generate's.
"""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch to compare with")
transformers = pytest.importorskip("transformers", reason="needs transformers to compare with")

import kernel_helpers  # noqa: E402
import make_goldens as reference  # noqa: E402
import models_run  # noqa: E402
from architectures import CASES, PUBLISHED, make_config  # noqa: E402

import genkit  # noqa: E402
from genkit import _core  # noqa: E402

TOLERANCE = 1e-3
PROMPT = 150  # tokens: more than two pages, more than the lengths that rope scaling stretches, more than the windows
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BEAMS = ["llama-head80-7-a-kv-head", "llama-multi-head-biases-sharded", "llama-dynamic-grows-while-writing",
         "mistral-window", "qwen2", "qwen3", "gpt2", "phi3-longrope-outgrown-while-writing"]


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
    made = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    prompt, tokens = reference.save_clear_checkpoint(make_config(made), folder, DTYPES[made.dtype],
                                                     zlib.crc32(request.param.encode()) % 1000, PROMPT, made.shard, made.distinct)
    assert (folder / "model.safetensors.index.json").exists() == (made.shard != "2GB")
    return SimpleNamespace(name=request.param, folder=folder, prompt=prompt, tokens=tokens, model=models_run.load(folder))


every_case = pytest.mark.parametrize("case", CASES, indirect=True)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype == np.float32
    return float(np.abs(a - b).max())


def outgrows(case) -> bool:
    """Whether the text outgrows its keys, which the engine then makes anew and models_run does not."""
    return len(case.prompt) <= case.model.config.fresh_keys_beyond < len(case.prompt) + len(case.tokens)


@every_case
def test_logits(case):
    expected = reference.reference_logits(case.folder, case.prompt)
    assert np.ptp(expected, axis=1).min() > 3  # lively
    assert distance(models_run.logits(case.model, case.prompt), expected) < TOLERANCE
    assert distance(genkit.load(case.folder, threads=1, kv_type="f32").logits(case.prompt), expected) < TOLERANCE


@every_case
def test_greedy_tokens(case):
    if not outgrows(case):
        assert models_run.greedy(case.model, case.prompt, len(case.tokens))[0] == case.tokens
    model = genkit.load(case.folder, threads=1, kv_type="f32")
    made = model.generate(case.prompt, max_tokens=len(case.tokens), ignore_eos=True, temperature=0)
    assert made.tokens == case.tokens and made.finish_reason == "length"


@every_case
def test_one_token_at_a_time_is_the_whole_prompt(case):
    if outgrows(case):
        return
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
    reference.save_checkpoint(config, tmp_path / "phi3", torch.float32, seed=5)
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


@pytest.mark.parametrize("case", [name for name, case in CASES.items()
                                   if case.model_type in ("llama", "mistral", "qwen2", "qwen3")], indirect=True)
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


def as_published(model_type, held):
    """transformers 5 holds the experts of a layer as one tensor and writes them apart, gpt_oss' aside."""
    if model_type == "gpt_oss":
        return held
    gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    apart = {}
    for name, value in held.items():
        if model_type == "mixtral":
            name = name.replace(".mlp.", ".block_sparse_moe.")
        module, _, part = name.rpartition(".experts.")
        for e in range(len(value) if module else 0):
            gate_up = part == "gate_up_proj"
            for to, matrix in zip((gate, up), value[e].chunk(2)) if gate_up else ((down, value[e]),):
                apart[f"{module}.experts.{e}.{to}.weight"] = matrix
        if not module:
            apart[name] = value
    return apart


SU = {"type": "su", "short_factor": [1 + 0.05 * i for i in range(8)], "long_factor": [2 + 0.9 * i for i in range(8)]}
OLD_SPELLINGS = {
    # case: keys that go, keys that come, whether transformers 5 still reads it so
    "gpt_neox": (["rope_parameters", "attention_bias"], {"rotary_pct": 0.25, "rotary_emb_base": 10000}, True),
    "gpt_neox-serial-no-biases-tied": (["rope_parameters"], {"rotary_pct": 0.5, "rotary_emb_base": 30000.0}, True),
    "phi-grouped": (["rope_parameters"], {"rope_theta": 10000.0, "partial_rotary_factor": 0.4, "rope_scaling": None}, True),
    "phi3-longrope-short": (["rope_parameters"], {"rope_theta": 10000.0, "rope_scaling": SU | {"attention_factor": 1.3}}, False),
    "phi3-longrope-outgrown-while-writing": (["rope_parameters"], {"rope_scaling": SU | {"type": "longrope"}}, True),
    "stablelm": (["rope_parameters"], {"rope_theta": 10000, "partial_rotary_factor": 0.25}, True),
    "glm4-biases": (["rope_parameters"], {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}, True),
    "glm": (["rope_parameters", "attention_bias"], {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}, False),
    "starcoder2": (["rope_parameters"], {"rope_theta": 10000.0}, True),
    "smollm3": (["rope_parameters", "layer_types"], {"rope_theta": 2000000.0, "rope_scaling": None}, True),
    "cohere2": (["rope_parameters", "layer_types"], {"rope_theta": 10000.0, "sliding_window_pattern": 4}, True),
    "gemma": ([], {"hidden_act": "gelu", "hidden_activation": None}, True),
    "gemma3_text": (["rope_parameters", "layer_types", "attn_logit_softcapping", "final_logit_softcapping"],
                    {"rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None,
                     "sliding_window_pattern": 6}, True),
    "gemma3_text-linear-capped": (["rope_parameters"], {"rope_theta": 1e5, "rope_local_base_freq": 1e3, "rope_scaling":
                                                        {"rope_type": "linear", "factor": 4.0}}, False),
    "bloom": (["hidden_size", "n_head"], {"n_embed": 96, "num_attention_heads": 6}, True),
    "falcon": (["num_hidden_layers", "num_attention_heads", "hidden_size", "num_kv_heads"],
               {"n_layer": 2, "n_head": 7, "n_embed": 112}, False),
    "falcon-grouped": (["num_hidden_layers", "num_attention_heads", "num_kv_heads"],
                       {"n_layer": 2, "n_head": 14, "n_head_kv": 2}, False),
}


@pytest.mark.parametrize("case", OLD_SPELLINGS, indirect=True)
def test_old_spellings_of_published_files(case, tmp_path):
    go, come, still_read = OLD_SPELLINGS[case.name]
    fields = json.loads((case.folder / "config.json").read_text())
    fields = {key: value for key, value in fields.items() if key not in go} | come
    for path in case.folder.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    got = models_run.logits(models_run.load(tmp_path), case.prompt)
    assert np.array_equal(got, models_run.logits(case.model, case.prompt))
    if still_read:
        assert distance(got, reference.reference_logits(tmp_path, case.prompt)) < TOLERANCE


def test_gemma3_beside_a_vision_tower(tmp_path):
    """Its text model gives transformers' logits; the rest of the file is not looked at."""
    case = CASES["gemma3_text"]
    config = transformers.Gemma3Config(
        text_config=case.sizes, mm_tokens_per_image=4, image_token_index=501, boi_token_index=500, eoi_token_index=499,
        vision_config=dict(hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                           patch_size=14))
    model = transformers.Gemma3ForConditionalGeneration(config)
    reference.randomize(model, 3, hidden=case.sizes["hidden_size"])
    model.save_pretrained(tmp_path)
    prompt = reference.random_prompt(499, PROMPT, 3)
    with torch.no_grad():
        expected = model.eval()(torch.tensor([prompt])).logits[0].float().numpy()
    assert distance(models_run.logits(models_run.load(tmp_path), prompt), expected) < TOLERANCE


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_of_published_sizes(name, tmp_path):
    """Names and shapes asked of a checkpoint are those of transformers' model of that size, none left over."""
    from genkit.checkpoints import Checkpoint, Fields, TensorInfo
    from genkit.models import read_model_config
    from genkit.quant.roles import survey

    model_type, sizes = PUBLISHED[name]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        held = as_published(model_type, transformers.AutoModelForCausalLM.from_config(config).state_dict())
    if config.tie_word_embeddings:
        held = {key: value for key, value in held.items() if not key.startswith("lm_head")}
    tensors = {key: TensorInfo("bf16", tuple(value.shape), tmp_path / "model.safetensors", 0, 2 * value.numel())
               for key, value in held.items()}
    fields = Fields(tmp_path / "config.json", json.loads(config.to_json_string(use_diff=False)))
    checkpoint = Checkpoint(tmp_path, tensors, {})
    roles, made = survey(fields, checkpoint), read_model_config(fields, checkpoint)
    assert set(roles.matrices) | set(roles.others) == set(held)
    assert made.max_positions == getattr(config, "max_position_embeddings", 2048) and made.vocab_size == config.vocab_size
