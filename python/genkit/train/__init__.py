"""Training of small llama models, the default model's recipe among them (extra: `pip install genkit[train]`).

`genkit train OUT` with no options repeats the recipe of the model that ships in the package; docs/training.md
explains it.
Nothing here is imported by the rest of genkit, and torch only when training starts.
"""
