"""OpenVINO GenAI: LLMPipeline on the CPU, with the pipeline's own clock for the first token and those after it.

`backend` is its attention: "SDPA" takes a prompt whole, "PA" (paged) cuts it into pieces and holds several sequences.
"""

import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai


class Driver:
    def __init__(self, bits: int, backend: str) -> None:
        self.bits, self.backend = bits, backend
        self.pipe = None

    def about(self) -> dict:
        return {"version": f"openvino-genai {genai.__version__.split('-')[0]}",
                "settings": f"{self.backend} attention, performance hint LATENCY"}

    def write(self, source: str, out: str, threads: int) -> None:
        """source: the Hugging Face folder."""
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        if self.bits == 4:
            config = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)
        else:
            config = OVWeightQuantizationConfig(bits=8)
        model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, quantization_config=config)
        model.save_pretrained(out)
        # Exporting and rounding are two steps of it, and the first alone looks like success.
        stored = sum(file.stat().st_size for file in Path(source).glob("*.safetensors"))
        made = (Path(out) / "openvino_model.bin").stat().st_size
        if made > 0.8 * stored:
            raise RuntimeError(f"OpenVINO wrote {made} bytes from {stored}: that is not rounded to {self.bits} bits")

    def load(self, path: str, threads: int, context: int) -> dict:
        start = time.perf_counter()
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                      "ATTENTION_BACKEND": self.backend}
        if self.backend == "PA":
            properties["scheduler_config"] = scheduler = genai.SchedulerConfig()
            scheduler.max_num_batched_tokens = 512
            scheduler.enable_prefix_caching = False
        self.pipe = genai.LLMPipeline(path, "CPU", **properties)
        return {"seconds": time.perf_counter() - start}

    def check(self, prompts: list, out: str) -> list:
        """The likeliest token after each prompt: the pipeline gives no logits."""
        return [int(self._generate([ids], 1).tokens[0][0]) for ids in prompts]

    def _generate(self, prompts: list, tokens: int):
        ids = np.array(prompts, np.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        config.apply_chat_template = False
        result = self.pipe.generate(inputs, config)
        got = [len(row) for row in result.tokens]
        if got != [tokens] * len(prompts):
            raise RuntimeError(f"asked for {tokens} tokens, got {got}")
        return result

    def prefill(self, before: list, ids: list) -> float:
        if before:
            raise NotImplementedError("its pipeline has no call that takes a prompt after another")
        return self._generate([ids], 1).perf_metrics.get_ttft().mean / 1000

    def decode(self, prompts: list, tokens: int) -> float:
        # Its time per output token is a step's, divided by the sequences of the batch.
        return self._generate(prompts, tokens + 1).perf_metrics.get_tpot().mean * len(prompts) * tokens / 1000
