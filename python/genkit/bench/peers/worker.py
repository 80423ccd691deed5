"""The child's side of a comparison: takes one driver file and answers requests, a JSON line each, until they end.

    PYTHON worker.py DRIVER.py '{"option": "value"}'

Runs under any Python 3.10 with the standard library alone, since a peer may live in an environment without genkit. A
request is {"call": METHOD, "arguments": {...}}, an answer {"result": ...} or {"error": TEXT, "kind": NAME}.
"""

import importlib.util
import json
import os
import sys


def main() -> None:
    # Run as a script, this file's folder comes first on the path, where a name may hide a package a driver imports.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    # Answers keep the real standard output to themselves: whatever an engine prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Where it is there, transformers loads it with every model, and one made for another torch ends that. No driver needs it.
    sys.modules["torchvision"] = None
    driver = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if driver is None:  # here, so that a package that is missing is an answer and not a dead process
                driver = read_driver(sys.argv[1]).Driver(**json.loads(sys.argv[2]))
            answer = {"result": getattr(driver, request["call"])(**request["arguments"])}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                return
            answer = {"error": " ".join(str(error).split()) or type(error).__name__, "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def read_driver(path: str):
    spec = importlib.util.spec_from_file_location("driver", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
