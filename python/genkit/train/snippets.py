"""Single functions and classes cut out of the train files, for the last stage of a run.

A prompt is a line without a file before it. Windows of files hardly ever begin so, and a model that saw only those
takes `def f(n):` at its start for a method in the middle of a test class. Here every window begins with a `def` or
`class` line without indent, and every piece ends with `<|endoftext|>`. Docstrings and comments are cut: with nothing to
go by, greedy decoding falls into prose first and then into a loop.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from typing import TYPE_CHECKING

from genkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from genkit.train.data import SourceFile
    from tokenizers import Tokenizer

_PIECES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
MIN_STATEMENTS = 3  # in the body, nested ones counted: stubs teach to stop at once


def cut_snippets(files: list[SourceFile]) -> list[str]:
    """Functions and classes at any depth, from their `def` or `class` line on, without the indent they had, without
    docstrings and lines of comment, each text once. Files that this Python does not parse have none."""
    found: dict[str, None] = {}
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's strings
                tree = ast.parse(file.text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        lines = file.text.split("\n")
        for node in ast.walk(tree):
            if not isinstance(node, _PIECES):
                continue
            text = _code_only(node, lines)
            if text is not None:
                found[text] = None
    return list(found)


def _code_only(node: ast.AST, lines: list[str]) -> str | None:
    """The piece at the left edge without docstrings and lines of comment; None where that is not valid Python."""
    prose = set()
    for inner in ast.walk(node):
        if isinstance(inner, _PIECES) and len(inner.body) > 1 and ast.get_docstring(inner, clean=False) is not None:
            prose.update(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    numbers = range(node.lineno, node.end_lineno + 1)
    kept = [lines[n - 1] for n in numbers if n not in prose and not lines[n - 1].lstrip().startswith("#")]
    text = textwrap.dedent("\n".join(kept)) + "\n"
    # Strings with lines at the left edge keep their function from losing its indent, and a line of a string may look
    # like a comment; few are lost by that.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return text if _statements(tree.body[0]) >= MIN_STATEMENTS else None


def _statements(node: ast.AST) -> int:
    return sum(isinstance(n, ast.stmt) for n in ast.walk(node)) - 1


class SnippetBatches:
    """Endless batches of windows of snippets, as a function of the seed and the step like Batches. Every epoch puts the
    snippets in a new order and fills windows with them one after another; what passes a window's end is dropped."""

    def __init__(self, snippets: list[np.ndarray], context: int, windows: int, seed: int):
        self.snippets, self.context, self.windows, self.seed = snippets, context, windows, seed
        self._epoch = -1
        self._first_step = 0
        self._rows = self._fill(0) if snippets else []
        if len(self._rows) < windows:
            raise UsageError(
                f"the functions and classes of the text fill {len(self._rows)} windows of {context} tokens, and a step "
                f"needs {windows}; use more text, or --snippet-steps 0"
            )
        self._epoch = 0

    def __call__(self, step: int) -> np.ndarray:
        """int64 `[windows, context + 1]` for the step, counted from 0 at the start of the stage."""
        import numpy as np

        if step < self._first_step:
            self._epoch, self._first_step, self._rows = 0, 0, self._fill(0)
        while step - self._first_step >= len(self._rows) // self.windows:
            self._first_step += len(self._rows) // self.windows
            self._epoch += 1
            self._rows = self._fill(self._epoch)
        start = (step - self._first_step) * self.windows
        return np.stack(self._rows[start : start + self.windows]).astype(np.int64)

    def _fill(self, epoch: int) -> list[np.ndarray]:
        import numpy as np

        rng = np.random.default_rng([self.seed, 1, epoch])
        rows, parts, length = [], [], 0
        for index in rng.permutation(len(self.snippets)):
            parts.append(self.snippets[index])
            length += len(self.snippets[index])
            if length > self.context:
                rows.append(np.concatenate(parts)[: self.context + 1])
                parts, length = [], 0
        return rows


def encode_snippets(tokenizer: Tokenizer, snippets: list[str]) -> list[np.ndarray]:
    """Token ids of every snippet, each followed by `<|endoftext|>`."""
    import numpy as np

    from genkit.train.tokenizer import END_OF_TEXT_ID

    return [np.array([*e.ids, END_OF_TEXT_ID], dtype=np.int32) for e in tokenizer.encode_batch(snippets)]
