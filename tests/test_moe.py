"""Mixtures of experts as models: the forms gpt-oss' experts come in, rounding at load and by `genkit quantize`, and that a row
gets the same whatever is beside it. test_parity.py compares the models with transformers, in floats."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="makes the models")
pytest.importorskip("transformers", reason="makes the models")

import architectures  # noqa: E402
import make_goldens as reference  # noqa: E402
import models_run  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import genkit  # noqa: E402
from genkit import _core  # noqa: E402
from genkit.checkpoints import mxfp4, open_checkpoint, read_config  # noqa: E402
from genkit.errors import BadFileError, UsageError  # noqa: E402
from genkit.inspection import MIXED, examine  # noqa: E402
from genkit.models import load_model  # noqa: E402
from genkit.opening import open_model  # noqa: E402
from genkit.quant import job  # noqa: E402
from genkit.quant.calibrate import calibrated  # noqa: E402
from genkit.quant.output import Output  # noqa: E402
from genkit.quant.quantize import Recipe, Run, make_plan  # noqa: E402

MIXTRAL = architectures.mixtral(hidden_size=96, intermediate_size=64, head_dim=16, vocab_size=307)
GPT_OSS = architectures.gpt_oss(hidden_size=96, intermediate_size=64, num_hidden_layers=2, vocab_size=307)
DEEPSEEK = architectures.deepseek_v3(vocab_size=307, num_hidden_layers=2, moe_intermediate_size=32)
PROMPT = reference.random_prompt(307, 70, 1)


def save(case, folder, seed=3):
    reference.save_checkpoint(architectures.make_config(case), folder, torch.float32, seed)
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return save(MIXTRAL, tmp_path_factory.mktemp("mixtral") / "model")


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    return save(GPT_OSS, tmp_path_factory.mktemp("gpt_oss") / "model")


def logits(folder, **options):
    return genkit.load(folder, threads=1, kv_type="f32", **options).logits(PROMPT)


def rewritten(folder, to, change, config=None):
    """A copy whose tensors are what `change` makes of them."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors")
    values = json.loads((to / "config.json").read_text()) | (config or {})
    (to / "config.json").write_text(json.dumps(values))
    return to


def to_mxfp4(weights):
    """[experts, in, out] -> blocks, scales [experts, out, in / 32 ..] and what they stand for, by the format's definition: the
    nearest of the 16 values to w / 2^(scale - 127)."""
    turned = weights.transpose(1, 2).reshape(len(weights), weights.shape[2], -1, 32).numpy()
    exponent = np.floor(np.log2(np.abs(turned).max(-1))) - 2
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    values = np.concatenate([values, -values])
    codes = np.abs(turned[..., None] / 2.0 ** exponent[..., None, None] - values).argmin(-1)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    exact = (values[codes] * 2.0 ** exponent[..., None]).astype(np.float32)
    back = exact.reshape(*exact.shape[:2], -1).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(blocks)), torch.from_numpy(np.ascontiguousarray((exponent + 127).astype(np.uint8))), torch.from_numpy(back.copy())


def test_mxfp4_codes_by_definition():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 3, 16)).astype(np.uint8)
    scales = np.array([[0, 1, 2], [3, 126, 127], [128, 200, 250], [251, 120, 1], [0, 0, 252], [127, 127, 127]], np.uint8)
    values = [0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6]
    want = np.array([[values[blocks[n, k // 32, k % 32 // 2] >> 4 * (k % 2) & 15] * 2.0 ** (int(scales[n, k // 32]) - 127)
                      for k in range(96)] for n in range(6)])
    assert np.array_equal(mxfp4.codes(blocks, scales).dequantize().astype(np.float64), want)
    with pytest.raises(ValueError, match="255"):
        mxfp4.codes(blocks, np.full((6, 3), 255, np.uint8))


def test_gpt_oss_in_mxfp4(gpt_oss, tmp_path):
    def floats(tensors):
        return {name: to_mxfp4(value)[2] if value.ndim == 3 else value for name, value in tensors.items()}

    def packed(tensors):
        found = {}
        for name, value in tensors.items():
            if value.ndim == 3:
                found[name + "_blocks"], found[name + "_scales"], _ = to_mxfp4(value)
            else:
                found[name] = value
        return found

    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}
    want = logits(rewritten(gpt_oss, tmp_path / "floats", floats))
    folder = rewritten(gpt_oss, tmp_path / "packed", packed, config)
    got = logits(folder)
    # The same weights; what goes into products with codes is rounded to int8.
    assert 0 < np.abs(got - want).mean() < 0.1 * np.abs(want).std()
    assert np.isfinite(logits(folder, quantize="int4")).all()
    with pytest.raises(UsageError, match="--quantize"):
        job.quantize(folder, tmp_path / "out", Recipe(), price=False, threads=1)
    damaged = rewritten(folder, tmp_path / "damaged", lambda tensors: {
        name: torch.full_like(value, 255) if name.endswith("_scales") else value for name, value in tensors.items()})
    with pytest.raises(BadFileError, match="expert 0: a scale of 255"):
        genkit.load(damaged)


def test_gpt_oss_with_experts_apart(gpt_oss, tmp_path):
    """As GGUF files have them: gates and ups for themselves, a matrix for each expert."""
    def apart(tensors):
        found = {}
        for name, value in tensors.items():
            module, _, part = name.rpartition("mlp.experts.")
            if not module:
                found[name] = value
                continue
            for e, one in enumerate(value):
                kind = "bias" if part.endswith("_bias") else "weight"
                one = one.T if kind == "weight" else one
                parts = {"gate_proj": one[0::2], "up_proj": one[1::2]} if part.startswith("gate_up") else {"down_proj": one}
                found |= {f"{module}mlp.experts.{e}.{to}.{kind}": x.contiguous() for to, x in parts.items()}
        return found

    assert np.array_equal(logits(rewritten(gpt_oss, tmp_path / "apart", apart)), logits(gpt_oss))


@pytest.mark.parametrize("case, quantize", [(MIXTRAL, "int4"), (DEEPSEEK, "int8"), (GPT_OSS, "none")], ids=["mixtral", "deepseek", "oss"])
def test_a_row_gets_the_same_whatever_is_beside_it(case, quantize, tmp_path):
    folder = save(case, tmp_path / "model")
    whole = logits(folder, quantize=quantize)
    for threads in (2, 3):
        assert np.array_equal(genkit.load(folder, threads=threads, kv_type="f32", quantize=quantize).logits(PROMPT), whole)
    _core.set_threads(1)
    if quantize == "none":
        run = models_run.load(folder)
        for chunk in (1, 13):
            assert np.array_equal(models_run.logits(run, PROMPT, chunk), whole)
    model = genkit.load(folder, threads=2, kv_type="f32", quantize=quantize)
    prompts = [PROMPT[:n] for n in (3, 70, 18, 1, 40)]
    alone = [model.generate(prompt, max_tokens=17, ignore_eos=True, temperature=0).tokens for prompt in prompts]
    for prompt, tokens in zip(prompts, alone):  # the recorded steps against whole prompts
        assert tokens[5] == int(model.logits(prompt + tokens[:5])[-1].argmax())
    together = model.generate(prompts, batch_size=4, max_tokens=17, ignore_eos=True, temperature=0)
    assert [generation.tokens for generation in together] == alone
    _core.set_threads(1)


def test_quantize_writes_experts(mixtral, tmp_path):
    base = logits(mixtral)
    for format in ("genkit", "compressed-tensors"):
        report = job.quantize(mixtral, tmp_path / format, Recipe(type="int8", format=format), price=False, threads=1)
        name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
        assert report["tensors"][name]["method"] == "search" and "int8" in report["tensors"][name]["type"]
        assert report["tensors"]["model.layers.0.block_sparse_moe.gate.weight"]["type"] == "f32"
        assert np.abs(logits(tmp_path / format) - base).mean() < 0.2 * base.std()
    for format in ("gguf", "gptq", "mlx"):
        with pytest.raises(UsageError, match="mixtral"):
            job.quantize(mixtral, tmp_path / format, Recipe(format=format), price=False, threads=1)
    with pytest.raises(UsageError, match="one type"):
        job.quantize(mixtral, tmp_path / "mixed", Recipe(tensors=(("experts.1.w1", "int8"),)), price=False, threads=1)


def test_gates_and_ups_of_different_formats_run_as_floats(mixtral, tmp_path):
    for kind in ("int4", "int8"):
        job.quantize(mixtral, tmp_path / kind, Recipe(type=kind), price=False, threads=1)
    eight = tmp_path / "int8"
    formats = [json.loads((tmp_path / kind / "config.json").read_text())["quantization_config"]["formats"] for kind in ("int4", "int8")]
    mixed = {name: formats[".w3." in name][name] for name in formats[0]}
    others = load_file(tmp_path / "int4" / "model.safetensors")
    folder = rewritten(eight, tmp_path / "mixed", lambda tensors: {
        name: value for held, ups in ((others, False), (tensors, True)) for name, value in held.items() if (".w3." in name) == ups},
        {"quantization_config": {"quant_method": "genkit", "version": 1, "formats": mixed}})
    base = logits(mixtral)
    assert np.abs(logits(folder) - base).mean() < base.std()
    fields = read_config(folder)
    with open_checkpoint(folder, fields) as checkpoint:
        load_model(fields, checkpoint)
        said = {name for name, entry in examine(folder)["tensor_list"].items() if entry["runs"] == "widened: " + MIXED}
        assert set(checkpoint.widened) == said and set(checkpoint.widened.values()) == {MIXED}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_methods_that_calibrate_leave_experts_to_search(mixtral, method, tmp_path):
    from contextlib import ExitStack

    with ExitStack() as stack:
        source = open_model(mixtral, stack)
        plan = make_plan(mixtral, source.fields, source.checkpoint, Recipe(method=method), files=source.files)
        assert any("experts are rounded by search" in note for note in plan.notes)
        out = stack.enter_context(Output(tmp_path / "out", mixtral, {}, resume=False, force=False))
        with Run(plan, out, None) as run:
            arrays = [array for found in plan.arrays.values() for array in found]
            for name, contents in (plan.writer.extras(plan.kinds) | plan.writer.index(plan.files, arrays)).items():
                out.add(name, contents)
            calibrated(run, [PROMPT, PROMPT[::-1]], lambda: job.open_output(out.folder, stack))
        assert set(out.methods) == set(plan.kinds)
        assert {out.methods[name] for name in plan.roles.experts} == {"search"}
        assert out.methods["model.layers.0.self_attn.o_proj.weight"].startswith(("gptq", "search") if method == "gptq" else ("awq", "search"))


def test_experts_of_unlike_types_are_refused(mixtral, tmp_path):
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    folder = rewritten(mixtral, tmp_path / "mixed", lambda tensors: tensors | {name: tensors[name].half()})
    with pytest.raises(BadFileError, match=f"{name}.* another type"):
        genkit.load(folder)
    for key, value, words in (("num_local_experts", 4, "cannot be right"), ("num_local_experts", 6, "cannot be right|in none of"),
                              ("num_local_experts", 0, "1 to 1024"), ("num_experts_per_tok", 6, "1 to 5")):
        folder = rewritten(mixtral, tmp_path / f"{key}{value}", lambda tensors: tensors, {key: value})
        with pytest.raises(BadFileError, match=words):
            genkit.load(folder)
    folder = rewritten(mixtral, tmp_path / "many", lambda tensors: tensors, {"num_hidden_layers": 4096, "num_local_experts": 1000})
    with pytest.raises(BadFileError, match="num_local_experts is 1000; expected an integer from 1 to 16"):
        genkit.load(folder)
