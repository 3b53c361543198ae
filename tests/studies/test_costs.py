"""Costs are written into the file of a study, and nothing else of it changes."""
import sys

import pytest

from crlsr.core import share_path
from crlsr.studies import study_names
from tests import costs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("name", study_names())
def test_a_cost_is_written_where_its_variant_stands(name):
    text = share_path(f"nbs/reproduce/studies/{name}.toml").read_text(encoding="utf-8")
    for variant in tomllib.loads(text)["variants"]:
        expected = tomllib.loads(text)
        expected["variants"][variant]["cost"] = 1.23
        written = costs._written(text, variant, 1.234)
        assert tomllib.loads(written) == expected
        assert [line for line in written.splitlines() if line.startswith("#") or "  # " in line] == [line for line in text.splitlines() if line.startswith("#") or "  # " in line], "remarks stay"
        assert costs._written(written, variant, 1.234) == written, "once more changes nothing"
