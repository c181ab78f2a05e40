import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_promise_has_a_test():
    table = (ROOT / "docs/promises.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        assert ("†" in row) == (named[0][0] == "tests/test_faults.py"), row  # all of it is slow
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test
