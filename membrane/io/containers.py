"""Stacks in the files of microscopes and pipelines: MRC, Gatan's DM3 and DM4, HDF5, NumPy.

Read by mrcfile, RosettaSciIO, h5py and NumPy; the first two need requirements/formats.txt.
"""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from membrane.errors import UnreadableError
from membrane.io.units import to_nanometres

MRC = {".mrc", ".rec", ".st", ".map", ".ali"}
GATAN = {".dm3", ".dm4"}
HDF5 = {".h5", ".hdf5", ".hdf"}
CONTAINERS = MRC | GATAN | HDF5 | {".npy"}
HDF5_SIZES = {"resolution": 1.0, "element_size_um": 1e3}  # attributes of (z, y, x), and their nm
IMOD_STAMP, IMOD_SIGNED = 1146047817, 1  # in the header of IMOD's MRC files; a bit of its flags


def is_container(path: Path) -> bool:
    """Tells by its name whether a file is one of these; an HDF5 one may end in :/path/in/it."""
    return split_inner_path(path)[0].suffix.lower() in CONTAINERS


def split_inner_path(path: Path) -> tuple[Path, str]:
    """Returns the file and the array of `FILE.h5:/path/in/it`; of any other path itself and ""."""
    file, colon, inner = str(path).rpartition(":")
    if colon and Path(file).suffix.lower() in HDF5:
        return Path(file), inner
    return path, ""


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[tuple]:
    """Gives a stack whose slices are read when they are asked for.

    Yields:
        slices: array-like (z, y, x) of grey values.
        size: of a pixel in nm, y and x, as the file states it, else None.

    Raises:
        UnreadableError: the library that reads it is not installed; or it holds no such stack.
    """
    file, inner = split_inner_path(path)
    kind = file.suffix.lower()
    file.stat()  # a link may lead nowhere
    if kind == ".npy":
        opened = contextlib.nullcontext((np.load(file, mmap_mode="r"), None))
    else:
        opened = _open_mrc if kind in MRC else _open_gatan if kind in GATAN else _open_hdf5
        opened = opened(file, inner)
    with opened as (array, size):
        shape = tuple(array.shape)
        while len(shape) > 3 and shape[0] == 1:
            array, shape = array[0], shape[1:]
        array = array[None] if len(shape) == 2 else array
        if len(array.shape) != 3 or np.dtype(array.dtype).kind not in "buif":
            raise UnreadableError(
                f"{path}: {array.dtype} of shape {tuple(array.shape)}; expected grey (z, y, x)"
            )
        if array.shape[2] <= 4 < min(array.shape[:2]):  # no stack: its slices would be so narrow
            raise UnreadableError(
                f"{path}: of shape {tuple(array.shape)}, colour as it seems; expected grey (z, y, "
                "x), or save it as PNG or TIFF"
            )
        yield array, size


def _require(module: str, path: Path):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UnreadableError(
            f"{path}: needs {module.split('.')[0]}; pip install -r requirements/formats.txt"
        ) from None


@contextlib.contextmanager
def _open_mrc(path: Path, inner: str) -> Iterator[tuple]:
    mrcfile = _require("mrcfile", path)
    warnings.filterwarnings("ignore", module="mrcfile")  # what is wrong is said in one line
    with mrcfile.mmap(path, permissive=True) as file:
        if file.data is None:
            raise UnreadableError(f"{path}: no MRC file, or one that was cut short")
        array = file.data
        if file.header.mode == 0 and not _is_signed(file.header):
            array = array.view(np.uint8)
        size = tuple(float(file.voxel_size[axis]) / 10 for axis in "yx")  # Å
        yield array, size


def _is_signed(header) -> bool:
    """Tells whether the bytes of an MRC file are signed, as the standard has it since 2014."""
    stamp, flags = np.frombuffer(header.extra2.tobytes()[40:48], header.nx.dtype)
    if stamp == IMOD_STAMP:
        return bool(flags & IMOD_SIGNED)
    return header.dmax < 128  # files of before then count from 0 to 255


@contextlib.contextmanager
def _open_gatan(path: Path, inner: str) -> Iterator[tuple]:
    images = _require("rsciio.digitalmicrograph", path).file_reader(str(path))
    image = max(images, key=lambda one: one["data"].size)  # the others are thumbnails
    axes = [one for one in image["axes"] if one["name"] in ("y", "x")]
    yield image["data"], tuple(axis["scale"] * to_nanometres(str(axis["units"])) for axis in axes)


@contextlib.contextmanager
def _open_hdf5(path: Path, inner: str) -> Iterator[tuple]:
    with h5py.File(path, "r") as file:
        found = {}

        def note(name: str, node: h5py.HLObject) -> None:
            if isinstance(node, h5py.Dataset) and node.ndim > 1 and node.dtype.kind in "buif":
                found[name] = node

        file.visititems(note)
        inner = inner.strip("/") or (next(iter(found)) if len(found) == 1 else "")
        if inner not in found:
            shapes = ", ".join(f"{path}:/{name} {node.shape}" for name, node in found.items())
            raise UnreadableError(f"{path}: name one of its arrays, as {shapes or 'it has none'}")
        array, size = found[inner], None
        for name, unit in HDF5_SIZES.items():
            if name in array.attrs and np.size(array.attrs[name]) >= 2:
                size = tuple(float(side) * unit for side in array.attrs[name][-2:])
        yield array, size
