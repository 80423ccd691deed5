"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from genkit.errors import UsageError


class StopChecker:
    """Finds the first stop string in text that comes in pieces.

    The match that is complete first wins; of two that end together, the longer one. So the result does not depend on
    how the text is cut into pieces. What is given out never holds a stop string, nor a tail that could begin one.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Raises UsageError for a stop that is not text or is empty."""
        if isinstance(stops, str):
            stops = [stops]
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise UsageError(f"stop: {stop!r} cannot stop anything; give non-empty strings")
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to give out, whether a stop string was completed). After a stop all text is dropped."""
        if self._stopped:
            return "", True
        text = self._held + text
        end, begin = min(
            ((at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0), default=(0, -1)
        )
        if begin >= 0:
            self._held, self._stopped = "", True
            return text[:begin], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
