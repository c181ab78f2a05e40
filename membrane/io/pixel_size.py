"""Pixel sizes in nm, as files and flags state them."""

import contextlib
from pathlib import Path
from xml.etree import ElementTree

import tifffile

from membrane.errors import UserError
from membrane.io.containers import is_container, open_container
from membrane.io.decoding import reading
from membrane.io.readers import TIFF_SUFFIXES
from membrane.io.tiff import open_tiff
from membrane.io.units import to_nanometres

RESOLUTION_UNITS = {2: "inch", 3: "cm"}  # by the number in TIFF's tag ResolutionUnit
GATAN_SCALE, GATAN_UNIT = (65010, 65009), (65004, 65003)  # tags of y and x
PLAUSIBLE = (0.2, 200)  # nm; what a file says beyond is a scanner's or screen's dots per inch
SAME_SIZE = 0.02  # pixel sizes that differ by less are one

Size = tuple[float, float]  # nm, of y and x


def plausible(size: Size | None) -> Size | None:
    """Returns a pixel size if an electron micrograph can have it, else None."""
    low, high = PLAUSIBLE
    return size if size and all(low <= side <= high for side in size) else None


def check_pixel_size(size: float | None) -> None:
    """Refuses a size that no electron micrograph's pixels have, such as micrometres for nm."""
    low, high = PLAUSIBLE
    if size is not None and not low <= size <= high:
        raise UserError(f"--pixel-size {size:g}: expected {low:g} to {high:g} nm")


def read_pixel_size(path: Path) -> Size | None:
    """Returns the sides of a pixel in nm, y and x, as a file states them.

    A TIFF does as OME, ImageJ, Thermo Fisher (FEI), Zeiss, Olympus (SIS) or Gatan, or in the plain
    tags; MRC, DM3, DM4 and HDF5 in their headers. None where it says nothing, or what no electron
    micrograph has (such as 72 dots per inch).
    """
    if is_container(path):
        with reading(path), open_container(path) as (_, size):
            return plausible(size)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with reading(path), open_tiff(path) as tiff:
        for read in (_of_ome, _of_imagej, _of_fei, _of_zeiss, _of_sis, _of_gatan, _of_tags):
            # metadata that are missing, or make no sense, cost no slice
            faults = AttributeError, ArithmeticError, LookupError, TypeError, ValueError
            with contextlib.suppress(*faults, ElementTree.ParseError):
                if size := plausible(read(tiff, tiff.pages.first)):
                    return size
    return None


def read_square_pixel_size(path: Path) -> float | None:
    """Returns the side of a pixel in nm, as `read_pixel_size` does.

    Raises:
        UserError: they are not square.
    """
    down, across = read_pixel_size(path) or (None, None)
    if find_scale((down, across) if down else None, across) != (1.0, 1.0):
        raise UserError(
            f"{path}: pixels of {down:g}x{across:g} nm (y, x); to train, resample the slices to "
            "square ones, or say --pixel-size if the file is wrong"
        )
    return across


def _of_ome(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    if not page.is_ome:
        return None
    pixels = ElementTree.fromstring(page.description).find(".//{*}Pixels").attrib
    across = float(pixels["PhysicalSizeX"]) * to_nanometres(pixels.get("PhysicalSizeXUnit", "µm"))
    down = float(pixels.get("PhysicalSizeY", 0)) * to_nanometres(
        pixels.get("PhysicalSizeYUnit", "µm")
    )
    return down or across, across


def _of_imagej(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    unit = to_nanometres(tiff.imagej_metadata["unit"])
    return unit / page.resolution[1], unit / page.resolution[0]


def _of_fei(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    for section in tiff.fei_metadata.values():
        if "PixelWidth" in section:  # metres
            across = section["PixelWidth"] * 1e9
            return section.get("PixelHeight", 0) * 1e9 or across, across
    return None


def _of_zeiss(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    known = tiff.sem_metadata
    _, side, unit = known.get("ap_image_pixel_size") or known["ap_pixel_size"]
    return (side * to_nanometres(unit),) * 2


def _of_sis(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    return tiff.sis_metadata["pixelsizey"] * 1e9, tiff.sis_metadata["pixelsizex"] * 1e9  # metres


def _of_gatan(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    tags = zip(GATAN_SCALE, GATAN_UNIT, strict=True)
    return tuple(
        page.tags[scale].value * to_nanometres(page.tags[unit].value) for scale, unit in tags
    )


def _of_tags(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Size | None:
    unit = to_nanometres(RESOLUTION_UNITS[page.resolutionunit])
    return unit / page.resolution[1], unit / page.resolution[0]


def find_scale(size: Size | None, trained_size: float | None) -> Size:
    """Returns what a slice's height and width are multiplied by for the network to see it.

    Args:
        size: of its pixels in nm, y and x, if it is known.
        trained_size: of the pixels that the network was trained at, if that is known.
    """
    scale = [side / trained_size if trained_size else 1.0 for side in size or (1.0, 1.0)]
    if not size or all(abs(side - 1) <= SAME_SIZE for side in scale):
        return 1.0, 1.0
    return scale[0], scale[1]
