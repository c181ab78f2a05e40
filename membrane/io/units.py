"""Units of length, however microscopes and programs spell them."""

import re

NANOMETRES = {
    **dict.fromkeys(("m", "meter"), 1e9),
    **dict.fromkeys(("cm", "centimeter"), 1e7),
    **dict.fromkeys(("in", "inch", "inche"), 2.54e7),
    **dict.fromkeys(("mm", "millimeter"), 1e6),
    **dict.fromkeys(("µm", "um", "micron", "micrometer"), 1e3),
    **dict.fromkeys(("nm", "nanometer"), 1.0),
    **dict.fromkeys(("å", "a", "angstrom", "ångström", "ångstrom"), 0.1),
    **dict.fromkeys(("pm", "picometer"), 1e-3),
}


def to_nanometres(unit: str | None) -> float:
    """Returns how many nm a unit of length has; 0 for what is none."""
    word = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda code: chr(int(code[1], 16)), unit or "")  # ImageJ
    word = word.strip().lower().replace("μ", "µ").replace("metre", "meter")
    return NANOMETRES.get(word) or NANOMETRES.get(word.removesuffix("s"), 0.0)
