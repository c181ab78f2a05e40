"""Pixel sizes in nm, as files and flags state them."""

from pathlib import Path
from xml.etree import ElementTree

from membrane.errors import UserError
from membrane.io.readers import TIFF_SUFFIXES, open_tiff, reading

NANOMETRES = {  # per unit of length, as ImageJ, OME, OME-Zarr and TIFF's tags name it
    **{"å": 0.1, "angstrom": 0.1, "mm": 1e6, "millimeter": 1e6, "cm": 1e7, "inch": 2.54e7},
    **dict.fromkeys(("nm", "nanometer"), 1.0),
    **dict.fromkeys(("µm", "μm", "um", "\\u00b5m", "micron", "microns", "micrometer"), 1e3),
}
RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # by the number in TIFF's tag ResolutionUnit
PLAUSIBLE = (0.2, 200)  # nm; what a file says beyond is a scanner's or screen's dots per inch
SAME_SIZE = 0.02  # pixel sizes that differ by less are one


def check_pixel_size(size: float | None) -> None:
    """Refuses a size that no electron micrograph's pixels have, such as micrometres for nm."""
    low, high = PLAUSIBLE
    if size is not None and not low <= size <= high:
        raise UserError(f"--pixel-size {size:g}: expected {low:g} to {high:g} nm")


def read_pixel_size(path: Path) -> float | None:
    """Returns the side of a pixel in nm as a TIFF states it (ImageJ, OME or the plain tags).

    None where it says nothing, or what no electron micrograph has (such as 72 dots per inch).
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with reading(path), open_tiff(path) as tiff:
        page = tiff.pages.first
        try:
            if page.is_ome:
                pixels = ElementTree.fromstring(page.description).find(".//{*}Pixels")
                unit, size = pixels.get("PhysicalSizeXUnit", "µm"), pixels.get("PhysicalSizeX", 0)
            else:
                unit = (tiff.imagej_metadata or {}).get("unit")
                unit = unit or RESOLUTION_UNITS.get(page.resolutionunit, "")
                size = 1 / page.resolution[0]
            size = float(size) * NANOMETRES.get(unit.lower(), 0)
        except (AttributeError, ArithmeticError, TypeError, ValueError, ElementTree.ParseError):
            return None  # metadata that make no sense cost no slice
    return size if PLAUSIBLE[0] <= size <= PLAUSIBLE[1] else None


def find_scale(size: float | None, trained_size: float | None) -> float:
    """Returns what a slice's sides are multiplied by for a network trained at another size."""
    scale = size / trained_size if size and trained_size else 1.0
    return 1.0 if abs(scale - 1) <= SAME_SIZE else scale
