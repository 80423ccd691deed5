"""Which tokens each training step sees: a pure function of the seed and the step, so that a run can stop anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from genkit.train.data import SourceFile
    from tokenizers import Tokenizer


def encode_files(tokenizer: Tokenizer, files: list[SourceFile]) -> list[np.ndarray]:
    """Token ids (uint16 or int32) of every file, each preceded by `<|endoftext|>`, in the order given."""
    import numpy as np

    from genkit.train.tokenizer import END_OF_TEXT_ID

    dtype = np.uint16 if tokenizer.get_vocab_size() <= 65536 else np.int32
    encoded = tokenizer.encode_batch([file.text for file in files])
    return [np.array([END_OF_TEXT_ID, *e.ids], dtype=dtype) for e in encoded]


class Batches:
    """Endless batches of windows. Every epoch puts the files in a new order, joins them, drops a random start of less
    than one window, cuts windows of `context + 1` tokens that share one token with the next, and shuffles those."""

    def __init__(self, files: list[np.ndarray], context: int, windows: int, seed: int):
        self.files, self.context, self.windows, self.seed = files, context, windows, seed
        self.tokens = sum(map(len, files))
        # The random start takes up to `context` tokens, so this many windows fit in every epoch.
        self.steps_per_epoch = (self.tokens - 1 - context) // context // windows
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"{self.tokens} tokens of training text do not fill one batch of {windows} windows of {context}; "
                "use more text, a smaller --batch-tokens or a smaller --context"
            )
        self._epoch = -1

    def __call__(self, step: int) -> np.ndarray:
        """int64 `[windows, context + 1]` for the step, counted from 0."""
        import numpy as np

        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._stream = np.concatenate([self.files[i] for i in rng.permutation(len(self.files))])
            start = int(rng.integers(self.context))
            count = (len(self._stream) - 1 - start) // self.context
            self._starts = start + self.context * rng.permutation(count)
            self._epoch = epoch
        starts = self._starts[index * self.windows : (index + 1) * self.windows]
        return np.stack([self._stream[s : s + self.context + 1] for s in starts]).astype(np.int64)
