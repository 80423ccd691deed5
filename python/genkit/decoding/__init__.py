"""What becomes of logits: sampling, beam search, stop strings, log-probabilities."""
