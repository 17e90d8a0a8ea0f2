"""`python -m conversion SOURCE TARGET [--to MODEL_TYPE]`: without --to into zoo, with it out again."""

import argparse
import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conversion", description="Convert a checkpoint into zoo, or back.")
    parser.add_argument("source", help="a folder with config.json and safetensors, or a Hub id")
    parser.add_argument("target", help="the folder to write; must not exist or be empty")
    parser.add_argument("--to", metavar="MODEL_TYPE", help="the family to write (default: zoo)")
    parser.add_argument("--dtype", help="cast floating tensors, for example bfloat16 (default: as they are)")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder that is already there")
    parser.add_argument("--source", dest="original", help="the checkpoint it came from, for what zoo does not use")
    parser.add_argument("--text-only", "--without-extras", action="store_true", help="do without what zoo does not use")
    options = parser.parse_args(arguments)
    # Seconds of imports: after a signal has been told what to do, below.
    from . import ConversionError, convert

    company = {"source": options.original, "text_only": options.text_only}
    try:
        report = convert(
            options.source,
            options.target,
            options.to,
            options.dtype,
            options.max_shard_size,
            options.overwrite,
            **company,
        )
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{report.target}: {report.model_type}, {report.parameters:,} parameters, {len(report.files)} weight file(s)")
    if report.kept:
        print(f"kept for the way back, not used by zoo: {report.listed(report.kept)}")
    if report.left_behind:
        print(f"left behind: {report.listed(report.left_behind)}")
    return 0


if __name__ == "__main__":
    # Ctrl-C ends any program at once and without a traceback; a target that is half built is removed first.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
