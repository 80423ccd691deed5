"""docs/cli.md must list what the command has."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_option_tables_are_current():
    sys.path.insert(0, str(DOCS))
    try:
        import make_cli
    finally:
        sys.path.remove(str(DOCS))
    assert make_cli.page() == make_cli.PAGE.read_text("utf-8"), "run: python docs/make_cli.py"
    assert "`--top-p P`" in make_cli.page() and "## genkit doctor" in make_cli.page()
