"""Renders one chat template, in a process of its own that `chat_template.py` can kill.

Run by path, never imported: reads one JSON object from stdin, writes one to stdout: {"text"} or {"error", "kind",
"line"}. Templates come with models, so they are strangers' programs: jinja2's immutable sandbox, plain data, and from
the moment rendering starts `seconds` of time (then SIGALRM ends the process), `memory` bytes, and no file can be
opened. The template's dialect is that of transformers 5.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime


def main() -> None:
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    environment = make_environment()
    datetime.now()  # reads the time zone's file now, for strftime_now
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, request["seconds"])
    for limit, value in (
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_CPU, request["seconds"] + 1),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    json.dump(render(environment, request["template"], request["variables"], request["characters"]), sys.stdout)


def render(environment, template: str, variables: dict, characters: int) -> dict:
    import jinja2

    try:
        parts, length = [], 0
        for part in environment.from_string(template).generate(**variables):
            length += len(part)
            if length > characters:
                return {"error": f"more than {characters} characters of text", "kind": "limit", "line": None}
            parts.append(part)
        return {"text": "".join(parts)}
    except Refusal as error:
        return {"error": str(error), "kind": "refusal", "line": _line(error)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": str(error.message), "kind": "broken", "line": error.lineno}
    except MemoryError:
        return {"error": "needs too much memory", "kind": "limit", "line": None}
    except RecursionError as error:
        return {"error": "recursion without end", "kind": "limit", "line": _line(error)}
    except Exception as error:  # whatever a stranger's program runs into
        return {"error": f"{type(error).__name__}: {error}", "kind": "broken", "line": _line(error)}


def _line(error: BaseException) -> int | None:
    """The template's line: jinja2 puts it into the traceback."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = step.tb_lineno
        step = step.tb_next
    return line


class Refusal(Exception):
    """The template called raise_exception: it does not take these messages."""


def make_environment():
    # Some of these are imported when a template needs them, which is too late: no file can be opened then.
    import encodings.unicode_escape  # noqa: F401
    import pprint  # noqa: F401
    import textwrap  # noqa: F401

    import jinja2.constants  # noqa: F401
    import jinja2.debug  # noqa: F401
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words for training; here its body is just text."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """Without names that begin with an underscore."""

        def __init__(*args, **kwargs):
            self, *args = args
            values = dict(*args, **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name, value):
            _check_name(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    class Dict:
        """`dict` as a template may use it: a call, and fromkeys; nothing to climb from."""

        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args):
            return dict.fromkeys(*args)

    def raise_exception(message):
        raise Refusal(message)

    def strftime_now(form):
        return datetime.now().strftime(form)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # Not jinja2's own, which writes < > & ' as escapes for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=Namespace
    )
    return environment


def _check_name(name) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


if __name__ == "__main__":
    main()
