"""genkit and its peers on the same model, in one run: `python -m genkit.bench.peers MODEL_FOLDER`.

engines.py says what is compared, files.py writes the weights as each engine wants them, drivers/ has a file an engine,
each run by worker.py in a process of its own (process.py), measure.py takes turns, report.py does the sums.
"""
