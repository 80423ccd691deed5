"""`genkit bench kernels`: every kernel by itself, beside the limit that bounds it.

case.py says what a case is; a file a family counts bytes and operations and calls the ops as models do; measure.py takes
the times, and has them all in FAMILIES, which tests hold against the slots of the core.
"""
