"""docs/models.md must list what the tests run, and every architecture must be in them."""

import sys
from pathlib import Path

from architectures import CASES

from genkit.models import ARCHITECTURES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_tables_are_current():
    sys.path.insert(0, str(DOCS))
    try:
        import make_models
    finally:
        sys.path.remove(str(DOCS))
    made = make_models.page()
    assert made == make_models.PAGE.read_text("utf-8"), "run: python docs/make_models.py"
    assert "| `qwen3` |" in made and "Q4_K, 4.5 bits" in made and "widened: bitsandbytes nf4" in made


def test_every_architecture_has_a_case():
    tested = {case.model_type for case in CASES.values()}
    assert set(ARCHITECTURES) - tested <= {"gemma3"}  # gemma3_text inside another configuration
    assert {ARCHITECTURES[name] for name in tested} == set(ARCHITECTURES.values())
