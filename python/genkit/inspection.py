"""What a model is, from its files alone: headers, configuration, tokenizer; of weights at most a head that may be a copy.

`examine` gives what `genkit inspect --json` prints; docs/cli.md lists the fields.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from genkit import kv_cache
from genkit.checkpoints.config import parse_json, read_json
from genkit.checkpoints.files import open_regular, read_into, shown_path
from genkit.engine import choose_kv_type, choose_quantize
from genkit.errors import BadFileError, UsageError
from genkit.models import read_model_config, tensor_shapes, unread
from genkit.opening import Opened, open_model
from genkit.quant.codes import same_order
from genkit.quant.formats import BY_NAME, Format
from genkit.quant.roles import survey
from genkit.split import stored_bytes
from genkit.text.utf8 import decoder_kinds

if TYPE_CHECKING:
    from genkit.checkpoints import Fields
    from genkit.models.config import ModelConfig
    from genkit.text.tokenizer import Tokenizer

CARD = "MODEL_CARD.md"
QUANTIZATION, CONVERSION = "quantization.json", "conversion.json"
MIXED = "formats that differ within a product"  # as nn.py says it when it does so
# What the chat templates of well-known families write, most particular first.
FAMILIES = (("<|start_header_id|>", "Llama 3"), ("<start_of_turn>", "Gemma"), ("<|START_OF_TURN_TOKEN|>", "Command"),
            ("<|start_of_role|>", "Granite"), ("<|channel|>", "Harmony (gpt-oss)"), ("<\uff5cUser\uff5c>", "DeepSeek"),
            ("[gMASK]", "GLM"), ("<|im_start|>", "ChatML"), ("[INST]", "Mistral or Llama 2"), ("<|user|>", "Phi-3 or Zephyr"),
            ("### Instruction", "Alpaca"))
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def examine(path: Path, context: Optional[int] = None) -> dict[str, Any]:
    """Sizes in bytes. Raises BadFileError, and UsageError for a context the model was not made for."""
    with ExitStack() as stack:
        opened = open_model(path, stack)
        config = read_model_config(opened.fields, opened.checkpoint)
        rounded = BY_NAME.get(choose_quantize(None, opened.fields))
        reasons, problem = _runs(opened)
        left_alone = unread(opened.fields, opened.checkpoint)
        types, tensors, weights = _types(opened, rounded, reasons)
        tokenizer, fault = _tokenizer(opened)
        kv_type = choose_kv_type("auto", opened.checkpoint, "int4" if rounded else "none")
        metadata = _metadata(opened)
    context = config.max_positions if context is None else context
    if not 1 <= context <= config.max_positions:
        raise UsageError(f"context {context} is outside 1 to {config.max_positions}, what the model was made for")
    cache = kv_cache.pages_for(context) * kv_cache.page_bytes(config.layers, config.kv_heads, config.head_dim, kv_type)
    layers = stored_bytes(tensor_shapes(opened.fields, config), opened.checkpoint, config.layers, rounded.bits if rounded else None)
    parameters = sum(entry["parameters"] for entry in types.values())
    card = path / CARD
    files = path.iterdir() if path.is_dir() else {path} | {tensor.file for tensor in opened.checkpoint.tensors.values()}
    return {
        "path": str(path),
        "container": "folder" if path.is_dir() else "gguf",
        "architecture": config.model_type,
        "parameters": parameters,
        "tensors": types,
        "tensor_list": tensors,
        "bits_per_weight": round(8 * opened.checkpoint.nbytes / parameters, 4),
        "rounded_on_loading_to": rounded.words if rounded else None,
        "left_alone": left_alone,
        "weight_bytes": config.weight_bytes,
        "disk_bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "windows": [{"keys": keys, "layers": count} for keys, count in sorted(_windows(config).items())],
        "ropes": [{"type": rope.type, "theta": rope.theta, "channels": rope.dim, "factor": rope.factor}
                  for rope in _ropes(config)],
        "experts": _experts(opened.fields),
        "vocab_size": config.vocab_size,
        "tokenizer_size": tokenizer.vocab_size if tokenizer else None,
        "tokenizer": _kind(tokenizer) if tokenizer else None,
        "chat_templates": dict(tokenizer.chat_templates) if tokenizer else {},
        "chat_template_family": _family(tokenizer.chat_template) if tokenizer else None,
        "max_context": config.max_positions,
        "memory": {"context": context, "weights": int(weights), "kv_type": kv_type, "kv_cache": cache,
                   "total": int(weights) + cache, "layers": [layer + cache // config.layers for layer in layers]},
        "problem": problem or fault,
        "provenance": _provenance(opened.beside(QUANTIZATION)),
        "conversion": _conversion(opened.beside(CONVERSION)),
        "metadata": metadata,
        "card": card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
    }


def _runs(opened: Opened) -> tuple[dict[str, str], Optional[str]]:
    """Why matrices in codes will be widened, by name; and what is wrong with the tensors, if anything."""
    checkpoint = opened.checkpoint
    reasons = dict(checkpoint.widened)
    try:
        roles = survey(opened.fields, checkpoint)
    except BadFileError as error:
        return reasons, str(error)
    for names in roles.together:
        stored = [checkpoint.quantized.get(name) for name in names]
        reason = ""
        if len({one and (one.format, one.shape[1]) for one in stored}) > 1:  # each is multiplied as it is, but for two cases
            if roles.experts & set(names) or any(one and one.order is not None for one in stored):
                reason = MIXED
        elif stored[0] and not all(same_order(one.order, stored[0].order) for one in stored):
            reason = "activation orders that differ within a product"
        if reason:
            reasons |= {name: reason for name, one in zip(names, stored) if one and name not in reasons}
    return reasons, None


def _types(opened: Opened, rounded: Optional[Format], reasons: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any], float]:
    """By type what there is of it; by tensor type, shape and how it runs; bytes of all of it in memory."""
    types: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Any] = {}
    weights = 0.0
    for name, info in opened.checkpoint.tensors.items():
        stored, count = opened.checkpoint.quantized.get(name), math.prod(info.shape)
        if stored is not None:
            runs = f"widened: {reasons[name]}" if name in reasons else "packed"
            weights += 2 * count if name in reasons else info.nbytes  # widened to f16
        else:
            rounds = rounded is not None and len(info.shape) == 2
            runs = f"rounded to {rounded.words}" if rounds else "as it is"
            weights += count * rounded.bits / 8 if rounds else info.nbytes
        words = stored.format.words if stored and stored.format else info.dtype
        entry = types.setdefault(words, {"tensors": 0, "parameters": 0, "bytes": 0, "bits": 0.0, "runs": Counter()})
        entry["tensors"] += 1
        entry["parameters"] += count
        entry["bytes"] += info.nbytes
        entry["runs"][runs] += 1
        tensors[name] = {"type": words, "shape": list(info.shape), "bytes": info.nbytes, "runs": runs}
    for entry in types.values():
        entry["bits"] = round(8 * entry["bytes"] / max(entry["parameters"], 1), 4)
        entry["runs"] = dict(entry["runs"])
    return types, tensors, weights


def _windows(config: "ModelConfig") -> "Counter[int]":
    """Keys a layer sees, 0 for all -> layers."""
    if hasattr(config, "windows"):
        return Counter(config.windows)
    return Counter(layer.window for layer in getattr(config, "layer", ())) or Counter({0: config.layers})


def _ropes(config: "ModelConfig") -> "tuple[Any, ...]":
    return (config.rope,) if hasattr(config, "rope") else tuple(getattr(config, "ropes", ()))


def _experts(fields: "Fields") -> Optional[dict[str, int]]:
    count = next((fields.raw[key] for key in EXPERTS if isinstance(fields.raw.get(key), int)), 0)
    active = fields.raw.get("num_experts_per_tok")
    return {"count": count, "active": active} if count > 1 and isinstance(active, int) else None


def _tokenizer(opened: Opened) -> "tuple[Optional[Tokenizer], Optional[str]]":
    """And what is wrong with it."""
    if not opened.has_tokenizer:
        return None, None
    try:
        return opened.tokenizer(), None
    except BadFileError as error:
        return None, str(error)


def _kind(tokenizer: "Tokenizer") -> str:
    """For people: "BPE, byte-level"."""
    kind = type(tokenizer._tokenizer.model).__name__
    if tokenizer.pieces is not None:
        return f"SentencePiece, {kind}"
    return kind + (", byte-level" if "ByteLevel" in decoder_kinds(tokenizer._tokenizer) else "")


def _family(template: Optional[str]) -> Optional[str]:
    return next((family for mark, family in FAMILIES if template and mark in template), None)


def _provenance(report: Path) -> Optional[dict[str, Any]]:
    """What `genkit quantize` wrote beside the weights. Raises BadFileError."""
    if not report.is_file():
        return None
    found = read_json(report)
    price = found.get("price")
    kl = price.get("kl") if isinstance(price, dict) else None
    return {"genkit": found.get("genkit"), "recipe": found.get("recipe"), "source_bytes": found.get("source_bytes"),
            "kl_mean": kl.get("mean") if isinstance(kl, dict) else None}


def _conversion(report: Path) -> Optional[dict[str, Any]]:
    """What `genkit convert` wrote."""
    if not report.is_file():
        return None
    found = read_json(report)
    return {key: found.get(key) for key in ("genkit", "source", "format", "type", "classes")}


def _metadata(opened: Opened) -> dict[str, Any]:
    """What the files say of themselves: general.* of GGUF, __metadata__ of safetensors; a shard's where one has some."""
    if not opened.path.is_dir():
        from genkit.checkpoints.gguf_container import read_container

        descriptor, size = open_regular(opened.path)
        try:
            keys = read_container(opened.path, descriptor, size).keys
        finally:
            os.close(descriptor)
        return {key: value for key, value in keys.items() if key.startswith("general.") and isinstance(value, (str, int, float))}
    found: dict[str, Any] = {}
    for file in sorted({info.file for info in opened.checkpoint.tensors.values()}):
        descriptor, _ = open_regular(file)
        try:
            head = bytearray(8)
            read_into(descriptor, memoryview(head), 0)
            header = bytearray(int.from_bytes(head, "little"))  # open_checkpoint has looked at it
            read_into(descriptor, memoryview(header), 8)
        finally:
            os.close(descriptor)
        found |= parse_json(bytes(header), f"{shown_path(file)}: header").get("__metadata__", {})
    return found
