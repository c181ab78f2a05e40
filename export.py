"""Writes a trained network in the form that other programs take.

python export.py                     a BioImage.IO package of the run that predict.py would use
python export.py RUN --output FILE.zip
python export.py RUN --format onnx   one file for ONNX Runtime; also tf, openvino, litert

All take normalised slices and give P(interior), without averaged flips and without a threshold.
BioImage.IO, ONNX and OpenVINO need pip install -r requirements/export.txt.
"""

import argparse
import sys

from membrane import cli
from membrane.exports.formats import FORMATS, LITERT_SIDE, PACKAGE, moved_when_whole, write_format


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = cli.Parser(prog="export.py", description=__doc__)
    add = parser.add_argument
    add("run", nargs="?", type=cli.text, metavar="RUN", help="as for predict.py --model")
    output_help = "default: outputs/RUN with the end of its format"
    add("--output", type=cli.path, metavar="FILE", help=output_help)
    format_help = (
        f"default: %(default)s; litert takes one size, {LITERT_SIDE}x{LITERT_SIDE} px, the others "
        "any that the network's stride divides; openvino also writes a .bin"
    )
    add("--format", choices=FORMATS, default=PACKAGE, help=format_help)
    author_help = "of the network, for a package; default: %(default)s"
    add("--author", type=cli.text, default="Membrane U-Net", metavar="NAME", help=author_help)
    license_help = (
        "of the weights, as SPDX names it, for a package; default: %(default)s, which ISBI-2012 "
        "and the models that ship ask for"
    )
    add("--license", type=cli.text, default="CC-BY-NC-4.0", metavar="ID", help=license_help)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(export, parse_args(argv), "export.py")


def export(args: argparse.Namespace) -> int:
    """Finds a run and exports it, whole or not at all; returns the exit status."""
    cli.check_installed(FORMATS[args.format].needs, "requirements/export.txt")
    cli.start_tensorflow()
    from membrane import runs
    from membrane.errors import UserError
    from membrane.inference.loading import load_network

    path, record, model_path = runs.open_run(args.run)
    if record and "threshold" not in record:
        raise UserError(f"{path}: has no model yet; python train.py --resume {path}")
    if record.get("synthetic"):
        print(f"Note: {runs.SYNTHETIC_NOTE}")
    name = path.resolve().name if path.is_dir() else path.stem
    network, suffix = load_network(model_path), FORMATS[args.format].suffix
    output = args.output or runs.OUTPUTS / f"{name}{suffix}"
    if suffix.startswith(".") and output.suffix != suffix:
        raise UserError(f"{output}: must end in {suffix}; name another --output")
    print(f"Model: {runs.display_path(path)}")
    with moved_when_whole(output, args.format) as part, cli.quiet():
        if args.format == PACKAGE:
            from membrane.exports.bioimageio import write_package

            write_package(part, model_path, network, record, name, args.author, args.license)
        else:
            write_format(network, args.format, part)
    tested = ", tested by bioimageio.core" if args.format == PACKAGE else ""
    print(f"{runs.display_path(output)}: {args.format}{tested}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
