"""Evaluate a checkpoint: `python eval.py DATA --checkpoint C` (the same as `sr3d eval`)."""

import sys

from sr3d.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
