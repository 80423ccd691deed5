"""Options that the commands of `genkit bench` share."""

from typing import Annotated, Optional

import typer

from genkit.cli.failure import enable_traceback
from genkit.cli.values import Device

Models = Annotated[
    Optional[list[str]], typer.Option("-m", "--model", metavar="MODEL", show_default=False,
                                        help="A model folder, a GGUF file, or a name on the hub; may be given again. Default: the model in the package.")
]
Shapes = Annotated[
    Optional[list[str]], typer.Option("--shape", metavar="NAME", show_default=False,
                                        help="Instead: a known model's sizes with random weights made in memory (genkit bench --shape help lists them); may be given again.")
]
Types = Annotated[
    Optional[list[str]], typer.Option("--type", metavar="LIST", show_default=False,
                                        help="Of the weights: stored, f32, f16, bf16, int8, int4, with commas. Default: as the model runs by itself, shapes in bf16.")
]
Threads = Annotated[
    Optional[list[str]], typer.Option("-t", "--threads", metavar="LIST", show_default=False,
                                        help="Like 1,2 or 1-8*2. Default: the processors this process may use.")
]
DeviceOption = Annotated[Device, typer.Option("--device", metavar="cpu|cuda|auto", show_default=False, help="Default: auto.")]
Output = Annotated[
    Optional[str], typer.Option("-o", "--output", metavar="FILE", show_default=False,
                                help="Write FILE.md, .csv, .json, .jsonl or .html as well.")
]
Plot = Annotated[
    Optional[str], typer.Option("--plot", metavar="FILE", show_default=False,
                                help="Draw FILE.svg, or with pip install 'genkit[plot]' FILE.png.")
]
History = Annotated[
    Optional[str], typer.Option("--history", metavar="FILE", show_default=False,
                                help="Append the result to a file, a line a run; genkit bench history shows it over time.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files of -o and --plot that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress on standard error.")]
Traceback = Annotated[
    bool, typer.Option("--traceback", is_eager=True, callback=enable_traceback, help="Show where an error came from.")
]
