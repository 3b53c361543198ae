"""Structure may change, values may not: the figures of golden.json are computed again."""
import copy
import json

import pytest

from crlsr.core import NUMERICS
from tests.house import golden


@pytest.fixture(scope="module")
def kept():
    return json.loads(golden.FILE.read_text())


def test_no_value_has_moved(kept):
    assert golden.differences(kept["values"], json.loads(json.dumps(golden.compute()))) == []


def test_the_file_belongs_to_these_numerics(kept):
    assert kept["numerics"] == NUMERICS, "raised NUMERICS: run `make golden` and say in the commit which values moved"


@pytest.mark.parametrize("path, entry, step", [
    (("training", "default", "losses"), 2, 1e-3), (("training", "queue", "gradients"), 5, 1e-3), (("sr", "one model"), 4, 1e-3), (("degrade", "iso"), 3, 3.0)])
def test_a_moved_value_is_told(kept, path, entry, step):
    for machine in ("this one", "another"):
        changed = copy.deepcopy(kept["values"])
        changed["machine"]["key"] = kept["values"]["machine"]["key"] if machine == "this one" else machine
        row = changed
        for part in path:
            row = row[part]
        row[entry] += step * max(1, abs(row[entry]))
        (line,) = golden.differences(kept["values"], changed)
        assert line.startswith(" | ".join(path))


def test_writing_is_refused_under_an_unchanged_number(kept, tmp_path, monkeypatch, capsys):
    changed = copy.deepcopy(kept)
    changed["values"]["sr"]["one model"][4] += 1
    file = tmp_path / "golden.json"
    file.write_text(json.dumps(changed))
    monkeypatch.setattr(golden, "FILE", file)
    monkeypatch.setattr(golden, "compute", lambda: kept["values"])
    assert golden.main(["write"]) == 1 and f"under NUMERICS {NUMERICS}" in capsys.readouterr().err
    assert json.loads(file.read_text()) == changed
    monkeypatch.setattr(golden, "NUMERICS", NUMERICS + 1)
    assert golden.main(["write"]) == 0
    assert json.loads(file.read_text()) == {"numerics": NUMERICS + 1, "values": kept["values"]}
