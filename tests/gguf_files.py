"""GGUF files of little random models and of vocabularies, made without the driver: what the tests of GGUF share."""

import json
import os

import numpy as np
from checkpoint_files import write_tensors
from format_files import rounded
from text_folders import corpus, make_folder

from genkit import _core, checkpoints, models
from genkit.checkpoints import gguf_container as container
from genkit.checkpoints.config import Fields
from genkit.checkpoints.gguf import open_model
from genkit.checkpoints.gguf_blocks import TYPES, decode, round_q6_k
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.quant.codes import Codes
from genkit.quant.formats import Format
from genkit.quant.roles import survey
from genkit.quant.writers.base import Source
from genkit.quant.writers.gguf import Model
from genkit.text.gguf_pre import COMPOSES, PRE
from genkit.text.gguf_vocab import vocabulary_keys

SEED = 20261127
KINDS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "q4_0": "int4", "q4_1": "int4", "q8_0": "int8", "q6_k": "q6_k"}

SIZES = dict(vocab_size=300, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, rope_theta=10000.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, rope_theta=50000.0, original_max_position_embeddings=64, attention_factor=1.3)
CONFIGS = {
    "llama": dict(model_type="llama", head_dim=16, rope_parameters=LLAMA3),
    "llama-bias": dict(model_type="llama", attention_bias=True, mlp_bias=True,
                       rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)),
    "mistral": dict(model_type="mistral", sliding_window=40, num_key_value_heads=4),
    "qwen2": dict(model_type="qwen2", head_dim=24, tie_word_embeddings=True, rope_parameters=YARN),
    "qwen3": dict(model_type="qwen3", rms_norm_eps=1e-6, tie_word_embeddings=True),
}


WIDE = dict(hidden_size=256, intermediate_size=512, head_dim=64)  # whole blocks of 256


def make_model(folder, config, rng):
    """A model folder with random weights, without tokenizer."""
    folder.mkdir(exist_ok=True)
    config = SIZES | config
    (folder / "config.json").write_text(json.dumps(config))
    fields = Fields(folder / "config.json", config)
    module = models._module(fields)

    class Nothing:
        nbytes, tensors = 0, {}

    shapes = module.tensor_shapes(module.read_config(fields, Nothing))
    write_tensors(folder / "model.safetensors",
                  {name: (rng.standard_normal(shape) * (0.2 if len(shape) == 1 else shape[1] ** -0.5)
                          + ("norm" in name)).astype(np.float32) for name, shape in shapes.items()})
    return folder


def write_model(folder, out, kind, piece=None):
    """The folder as GGUF, matrices as `kind` (of KINDS), written some rows at a time. Returns what each tensor holds, f32."""
    fields = checkpoints.read_config(folder)
    expected = {}
    with checkpoints.open_checkpoint(folder, fields) as checkpoint:
        writer = Model(Source(folder, fields, models.read_model_config(fields, checkpoint)))
        roles = survey(fields, checkpoint)
        kinds, arrays = {}, {}
        for name in [*roles.matrices, *roles.others]:
            shape = roles.shape(name)
            kinds[name] = writer.plain(name, shape, checkpoint.tensors[name].dtype)
            if name in roles.matrices:
                wanted = writer.format(KINDS[kind], None, kind == "q4_1")
                if isinstance(wanted, str) or writer.check(name, shape, wanted) is None:
                    kinds[name] = wanted
            [arrays[name]] = writer.arrays(name, shape, kinds[name])
        [file] = writer.files(list(arrays.values()), kinds)
        data = bytearray(file.nbytes)
        data[:len(file.head)] = file.head
        for name, form in kinds.items():
            values = checkpoint.load_f32(name, roles.shape(name)).numpy()
            if isinstance(form, Format):
                value = rounded(values, form)
                expected[name] = value.dequantize()
            elif form == "q6_k":
                value, expected[name] = values, decode("Q6_K", round_q6_k(values)).dequantize()
            else:
                tensor = _core.Tensor.from_numpy(values)
                value = expected[name] = values
                if form != "f32":
                    tensor = _core.convert(tensor, form)
                    value, expected[name] = tensor.numpy(), _core.convert(tensor, "f32").numpy()
            at = file.offsets[arrays[name].name]
            step = (piece or 1000) * writer.row_multiple
            for begin in range(0, len(values), step):
                end = min(begin + step, len(values))
                part = value.rows(begin, end) if isinstance(value, Codes) else value[begin:end]
                [encoded] = writer.encode(name, part)
                data[at:at + encoded.nbytes] = encoded.tobytes()
                at += encoded.nbytes
            assert at - file.offsets[arrays[name].name] == arrays[name].nbytes
    out.write_bytes(data)
    assert file.name == "model.gguf" and writer.extras(kinds) == {} and len(data) == file.nbytes
    return expected


def logits_of(path, ids, values=None):
    """genkit's logits of a GGUF file; with `values`, of these weights instead, by name, in f32."""
    with open_model(path).checkpoint as checkpoint:
        fields = open_model(path).fields
        if values is not None:
            folder = path.with_suffix(".folder")
            folder.mkdir()
            write_tensors(folder / "model.safetensors", values)
            checkpoint = checkpoints.open_checkpoint(folder)
        model = models.load_model(fields, checkpoint)
    c = model.config
    cache = KVCache(c.layers, c.kv_heads, c.head_dim, pages_for(len(ids)) + 2, "f32")
    return _core.Arena().run(model, cache.step([(Sequence(), ids)], context_length=len(ids)), cache).numpy()


def tokenizer_folder(kind, folder):
    """One of llama.cpp's own ways to cut words (PRE), or one of text_folders'."""
    if kind not in PRE:
        return make_folder(kind, folder)
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Fast, models as kinds

    patterns, ignore_merges = PRE[kind]
    fast = Fast(kinds.BPE(ignore_merges=ignore_merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
                                                 + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    if kind in COMPOSES:
        fast.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=650, special_tokens=["<s>", "<|eot_id|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.train_from_iterator(corpus(), trainer)
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|eot_id|>",
                                                              "chat_template": "{{ bos_token }}{{ messages }}"}))
    return folder


def vocabulary_file(tokenizer, path, drop=()):
    """A GGUF file with nothing but a tokenizer. Returns the notes."""
    keys, notes = vocabulary_keys(tokenizer, tokenizer.vocab_size + 3)
    keys = [("general.architecture", container.STRING, "llama"), *(key for key in keys if key[0] not in drop)]
    head, _, nbytes = container.head_bytes(keys, [("token_embd.weight", "F32", (1,))])
    path.write_bytes(head.ljust(nbytes, b"\0"))
    return notes


def read_keys(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return container.read_container(path, descriptor, path.stat().st_size)
    finally:
        os.close(descriptor)


VALUE_TYPES = {bool: container.BOOL, int: container.U32, float: container.F32, str: container.STRING}


def typed(keys):
    """Keys as they are read, as they are written."""
    found = {}
    for name, value in keys.items():
        if isinstance(value, list):
            found[name] = (container.ARRAY, (container.STRING, value))
        elif isinstance(value, np.ndarray):
            found[name] = (container.ARRAY, (container.F32 if value.dtype.kind == "f" else container.I32, value))
        else:
            found[name] = (VALUE_TYPES[type(value)], value)
    return found


def split(path, count, change=lambda i, keys: None):
    """The file as `count` files NAME-00001-of-..., the first without tensors, as llama.cpp's tool can do it. change(i, keys)
    may alter the keys. Returns the paths."""
    data, whole = path.read_bytes(), read_keys(path)
    names = list(whole.tensors)
    paths = []
    for i in range(count):
        part = names[len(names) * (i - 1) // (count - 1):len(names) * i // (count - 1)] if i else []
        keys = dict(typed(whole.keys) if i == 0 else {}) | {
            "split.no": (2, i), "split.count": (2, count), "split.tensors.count": (container.I32, len(names))}
        change(i, keys)
        head, offsets, nbytes = container.head_bytes([(name, *value) for name, value in keys.items()],
                                                     [(name, whole.tensors[name].type, whole.tensors[name].shape)
                                                      for name in part])
        out = bytearray(head.ljust(nbytes, b"\0"))
        for name in part:
            entry = whole.tensors[name]
            out[offsets[name]:offsets[name] + entry.nbytes] = data[entry.offset:entry.offset + entry.nbytes]
        paths.append(path.with_name(f"{path.stem}-{i + 1:05}-of-{count:05}.gguf"))
        paths[-1].write_bytes(out)
    return paths


# Where blocks have their float16 scales.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0], "MXFP4": []}


def random_blocks(rng, kind, n, k):
    """u8 [n, bytes of a row], weights of about 0.01."""
    block = TYPES[kind]
    raw = rng.integers(0, 256, (n, k // block.weights, block.nbytes), np.uint8)
    for at in SCALES[kind]:
        scales = rng.uniform(1e-4, 2e-4, raw.shape[:2]).astype(np.float16)
        raw[:, :, at:at + 2] = scales[:, :, None].view(np.uint8)
    if kind == "MXFP4":
        raw[:, :, 0] = rng.integers(118, 121, raw.shape[:2])
    return raw.reshape(n, -1)


def mixed_file(path, experts=0, seed=SEED):
    """A tiny model whose matrices are each of another type; with experts, those of all of them. Returns the length of its
    head."""
    rng = np.random.default_rng(seed)
    keys = [("general.architecture", container.STRING, "llama"), ("tokenizer.ggml.model", container.STRING, "no_vocab")]
    sizes = dict(block_count=2, context_length=64, embedding_length=256, feed_forward_length=256, **{
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16})
    if experts:
        sizes |= {"expert_count": experts, "expert_used_count": 2}
    keys += [(f"llama.{name}", container.U32, value) for name, value in sizes.items()]
    keys.append(("llama.attention.layer_norm_rms_epsilon", container.F32, 1e-5))
    tensors = {"token_embd.weight": ("Q5_1", (32, 256)), "output.weight": ("MXFP4", (32, 256)),
               "output_norm.weight": ("F32", (256,))}
    for i, kinds in enumerate((("Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS"),
                               ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_1"))):
        shapes = {"attn_q": (64, 256), "attn_k": (32, 256), "attn_v": (32, 256), "ffn_gate": (256, 256), "ffn_up": (256, 256),
                  "ffn_down": (256, 256)}
        for (name, shape), kind in zip(shapes.items(), kinds):
            if experts and name.startswith("ffn"):
                name, shape, kind = name + "_exps", (experts, *shape), kinds[3]
            tensors[f"blk.{i}.{name}.weight"] = kind, shape
        if experts:
            tensors[f"blk.{i}.ffn_gate_inp.weight"] = "F32", (experts, 256)
        tensors |= {f"blk.{i}.attn_output.weight": ("F16", (256, 64)), f"blk.{i}.attn_norm.weight": ("F32", (256,)),
                    f"blk.{i}.ffn_norm.weight": ("F32", (256,))}
    head, offsets, nbytes = container.head_bytes(keys, [(name, *rest) for name, rest in tensors.items()])
    data = bytearray(head.ljust(nbytes, b"\0"))
    for name, (kind, shape) in tensors.items():
        if kind[0] == "F":
            values = rng.standard_normal(shape) * 0.1 + (len(shape) == 1)
            raw = values.astype({"F32": "<f4", "F16": "<f2"}[kind]).view(np.uint8)
        else:
            raw = random_blocks(rng, kind, int(np.prod(shape[:-1])), shape[-1])
        data[offsets[name]:offsets[name] + raw.nbytes] = raw.tobytes()
    path.write_bytes(data)
    return len(head)


def small_file(folder):
    """A whole little model with tokenizer, as bytes, how long its head is, and the folder it was."""
    tokenizer_folder("llama-bpe", folder)
    config = dict(model_type="llama", vocab_size=653, hidden_size=32, head_dim=8, intermediate_size=32, num_hidden_layers=1,
                  rope_parameters=LLAMA3)
    make_model(folder, config, np.random.default_rng(SEED))
    path = folder.parent / "model.gguf"
    write_model(folder, path, "q4_0")
    found = read_keys(path)
    return path.read_bytes(), min(entry.offset for entry in found.tensors.values()), folder
