"""genkit and its peers on the same model, in one run: `genkit bench against`.

engines.py says what is compared, workloads.py on what, files.py and gguf.py write the weights as each engine wants them,
drivers/ has a file an engine, each run by worker.py in a process of its own (process.py), agreement.py tells whether they
compute the same, measure.py takes turns, ratios.py compares, run.py is the command.
"""
