"""llama.cpp through llama-cpp-python's plain C calls, timed as its own llama-bench does: no sampling, the first token
after a prompt's last id."""

import ctypes
import time

import llama_cpp as ll

UBATCH = 512  # the default
KEEP_LOG = ll.llama_log_callback(lambda level, text, data: None)


class Driver:
    def __init__(self, type: str, flash: bool, isa: str = "") -> None:
        self.type, self.flash = type, flash
        ll.llama_log_set(KEEP_LOG, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self.features = ll.llama_print_system_info().decode().strip(" |")
        if isa == "avx2" and "AVX512 = 1" in self.features:
            raise RuntimeError("this build uses AVX-512; build one with GGML_NATIVE, GGML_AVX512 off and GGML_AVX2, "
                               "GGML_FMA, GGML_F16C on in an environment of its own: --python llama-cpp=PYTHON")
        self.model = None
        self.contexts = {}  # what for, tokens -> context
        self.filled = {}  # context's key -> the prompt whose keys and values it holds

    def about(self) -> dict:
        vector = [name for name in ("AMX_INT8", "AVX512_BF16", "AVX512_VNNI", "AVX512", "AVX_VNNI", "AVX2", "NEON")
                  if f" {name} = 1" in self.features]
        return {"version": f"llama-cpp-python {ll.__version__}",
                "settings": f"flash attention {'on' if self.flash else 'off'}, KV f16, n_ubatch {UBATCH}, built with "
                         + ", ".join(vector[:4])}

    def write(self, source: str, out: str, threads: int) -> None:
        """Q4_K_M, which genkit does not write. source: the GGUF of floats."""
        parameters = ll.llama_model_quantize_default_params()
        parameters.ftype = ll.LLAMA_FTYPE_MOSTLY_Q4_K_M
        parameters.nthread = threads
        if ll.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters)):
            raise RuntimeError("llama.cpp could not write Q4_K_M")

    def load(self, path: str, threads: int, context: int) -> dict:
        start = time.perf_counter()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.threads = threads
        self._context("prefill", context, 1)
        return {"seconds": time.perf_counter() - start}

    def _context(self, purpose: str, tokens: int, sequences: int):
        """The context made for a purpose, remade when it is too small. In 256s, so that a brief turn's serves the others."""
        tokens += -tokens % 256
        if purpose in self.contexts and self.contexts[purpose][1] >= tokens:
            return self.contexts[purpose][0]
        parameters = ll.llama_context_default_params()
        parameters.n_ctx = tokens * sequences
        parameters.n_batch = max(tokens, UBATCH)  # a prompt in one call, which llama.cpp cuts into n_ubatch
        parameters.n_ubatch = UBATCH
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = (ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if self.flash
                                      else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        context = ll.llama_init_from_model(self.model, parameters)
        if not context:
            raise MemoryError(f"llama.cpp made no context of {tokens} tokens x {sequences}")
        if purpose in self.contexts:
            ll.llama_free(self.contexts[purpose][0])
        self.contexts[purpose] = context, tokens
        self.filled.pop(purpose, None)
        return context

    def _decode(self, context, rows: list) -> None:
        """rows: (id, position, sequence, wants logits)."""
        batch = ll.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence, logits) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, logits
            if code := ll.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {code}")
            ll.llama_synchronize(context)
        finally:
            ll.llama_batch_free(batch)

    def _fill(self, context, prompts: list) -> None:
        ll.llama_memory_clear(ll.llama_get_memory(context), False)
        for sequence, ids in enumerate(prompts):
            self._decode(context, [(token, i, sequence, i == len(ids) - 1) for i, token in enumerate(ids)])

    def _after(self, purpose: str, prompts: list, tokens: int):
        """A context that holds the prompts and has room for so many tokens more in each. A long prompt is paid once a run:
        what was written after it is dropped again."""
        context = self._context(purpose, len(prompts[0]) + tokens, len(prompts))
        if self.filled.get(purpose) == prompts:
            for sequence, ids in enumerate(prompts):
                ll.llama_memory_seq_rm(ll.llama_get_memory(context), sequence, len(ids), -1)
        else:
            self._fill(context, prompts)
            self.filled[purpose] = prompts
        return context

    def check(self, prompts: list, out: str) -> None:
        """Logits after each prompt into `out`, float32."""
        vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        with open(out, "wb") as file:
            for ids in prompts:
                context = self._context("prefill", len(ids), 1)
                self._fill(context, [ids])
                file.write(ctypes.string_at(ll.llama_get_logits_ith(context, -1), 4 * vocabulary))

    def prefill(self, before: list, ids: list) -> float:
        if before:
            context = self._after(f"prompt after {len(before)}", [before], len(ids))
        else:
            context = self._context("prefill", len(ids), 1)
            ll.llama_memory_clear(ll.llama_get_memory(context), False)
        start = time.perf_counter()
        self._decode(context, [(token, len(before) + i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        return time.perf_counter() - start

    def decode(self, prompts: list, tokens: int) -> float:
        context = self._after(f"{len(prompts)} after {len(prompts[0])}", prompts, tokens)
        start = time.perf_counter()
        for i in range(tokens):
            self._decode(context, [(ids[i % len(ids)], len(ids) + i, sequence, True)
                                   for sequence, ids in enumerate(prompts)])
        return time.perf_counter() - start
