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
        texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
        assert ("†" in row) == ("pytestmark = pytest.mark.slow" in texts[named[0][0]]), row
        for file, test in named:
            assert f"def {test}(" in texts[file], test
