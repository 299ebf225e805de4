"""`python -m data_pipeline.synthetic --out DIR` writes a synthetic driving set."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_pipeline.synthetic.dataset import SUMMARY, SyntheticConfig, write_synthetic


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    defaults = SyntheticConfig()
    parser = argparse.ArgumentParser(prog="data_pipeline.synthetic", description=SUMMARY)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made if missing")
    for field in fields(SyntheticConfig):
        default = getattr(defaults, field.name)
        parser.add_argument(f"--{field.name}", type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args(arguments))
    folder = options.pop("out")
    try:
        config = SyntheticConfig(**options)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    annotations = write_synthetic(folder, config)
    sys.stdout.write(f"{annotations}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
