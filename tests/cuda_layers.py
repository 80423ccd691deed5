"""What tests/test_cuda_layers.py asks of the engine over the plugin of tests/cuda_plugin.cpp, in a process of its own (a device
is opened once and for good). Prints a line of JSON for each finding: python cuda_layers.py PLUGIN PART. With "genkit" for PART
it is the command line, of the arguments that follow; "genkit proven" as if the kernels had run on a GPU."""

import json
import sys

import genkit
from genkit import _core, cli, devices, machine
from genkit.devices import stepping, using

PROMPT = "def fibonacci(n):"


def tell(what: str, **found: object) -> None:
    print(json.dumps({"what": what, **found}), flush=True)


def scopes() -> None:
    seen = [_core.device_in_use()]
    with using("cuda"):
        with using("cpu"):
            seen.append(_core.device_in_use())
        seen.append(_core.device_in_use())
        with using("cuda"):
            pass
        seen.append(_core.device_in_use())
        try:
            with using("cpu"):
                raise KeyError
        except KeyError:
            seen.append(_core.device_in_use())
        items = stepping("cuda", (i for i in range(2)))
        next(items)
        items.close()
        seen.append(_core.device_in_use())
    tell("devices in use", seen=seen + [_core.device_in_use()])
    found = [genkit.load(genkit.DEFAULT_MODEL, device=device).generate(PROMPT, beams=2, max_tokens=3, logprobs=2)
             for device in ("cpu", "cuda")]
    tell("beams with logprobs", tokens=[one.tokens for one in found],
         ours=[entry["logprob"] for entry in found[1].logprobs], want=[entry["logprob"] for entry in found[0].logprobs])


if __name__ == "__main__":
    machine.CUDA_PLUGIN = sys.argv[1]
    if sys.argv[2] == "genkit":
        arguments = sys.argv[3:]
        if arguments[0] == "proven":
            devices.PROVEN, arguments = True, arguments[1:]
        sys.argv = ["genkit", *arguments]
        cli.main()
    tell("device", state=list(machine.cuda_state()))
    {"scopes": scopes}[sys.argv[2]]()
