"""A model in memory, and when its tokens and its text come."""

import time

import genkit
from genkit.batch import prefill
from genkit.decoding.sampling import Sampler, SamplingSettings
from genkit.devices import most_used, using, wait
from genkit.kv_cache import KVCache, Sequence, pages_for
from genkit.plan import Decoder


class Driver:
    def load(self, path: str, **options) -> dict:
        self.model = genkit.load(path, **options)
        for _ in self.model.stream([0], max_tokens=2, ignore_eos=True, temperature=0):
            pass  # threads and buffers are there from now on
        return {"load_s": self.model.load_s, "tier": self.model.tier}

    def text(self, ids: list, count: int) -> list:
        """Seconds from the call of `stream` to each piece of text, as its reader has them."""
        begin = time.perf_counter()
        stream = self.model.stream(ids, max_tokens=count, ignore_eos=True, temperature=0)
        return [time.perf_counter() - begin for _ in stream]

    def tokens(self, ids: list, count: int) -> dict:
        """The tokens that `text` writes, and the seconds of each step after the prompt: a token in, the next one out, nothing
        else in between. The first records what the others replay, as it does in every text. ahead: on a GPU, the mean
        seconds of the same tokens as the engine has them, which asks for the next before it has the last; None where no two steps are
        alike. most_used: bytes of the GPU, by all that the process did."""
        with using(self.model.device):
            return self._tokens(ids, count)

    def _tokens(self, ids: list, count: int) -> dict:
        model, config = self.model.model, self.model.config
        device, longest = self.model.device, len(ids) + count
        cache = KVCache(config.layers, config.kv_heads, config.head_dim, pages_for(longest) + 1, self.model.kv_type)
        sampler = Sampler(SamplingSettings(), config.vocab_size)
        decoder, sequence = Decoder(model, cache, longest, sampler), Sequence()
        token = self._choose(sampler, prefill(model, cache, sequence, ids, lambda: False), sequence)
        tokens, seconds = [token], []
        for _ in range(count - 1):
            begin = time.perf_counter()
            drawn = decoder.draw([(sequence, tokens[-1])], 1, 1.0, ())[0]
            if not drawn:  # every step is another: models whose positions depend on the length of the text
                drawn = [self._choose(sampler, decoder.step([(sequence, tokens[-1])], context_length=len(ids)), sequence)]
            seconds.append(time.perf_counter() - begin)
            tokens.append(drawn[0])
        ahead = None
        if device != "cpu":
            cache.truncate(sequence, len(ids))
            wait(device)
            begin = time.perf_counter()
            if drawn := decoder.draw([(sequence, tokens[0])], count - 1, 3600.0, ())[0]:
                ahead = (time.perf_counter() - begin) / len(drawn)
        return {"tokens": tokens, "seconds": seconds, "ahead": ahead, "most_used": most_used(device)}

    @staticmethod
    def _choose(sampler: Sampler, logits, sequence: Sequence) -> int:
        return int(sampler.next(logits, [None], [0], [sequence.length])[0])
