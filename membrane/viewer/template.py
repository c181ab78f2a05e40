"""The page's template: page.html with its stylesheet and its scripts, as one text."""

import re
from pathlib import Path

STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)">\n')
SCRIPTS = re.compile(r'(?:<script src="[^"]+"></script>\n)+')  # those in a row make one element


def load_template() -> str:
    """Returns page.html with the stylesheet and the scripts that it names in their places."""
    page = _read("page.html")
    page = STYLE.sub(lambda found: f"<style>\n{_read(found[1])}</style>\n", page)
    return SCRIPTS.sub(lambda found: f"<script>\n{_read_all(found[0])}</script>\n", page)


def _read_all(lines: str) -> str:
    return "\n".join(map(_read, re.findall(r'src="([^"]+)"', lines)))


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
