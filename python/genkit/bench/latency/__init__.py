"""How long one waits: from a command to the first text, from token to token, and for text at all."""
