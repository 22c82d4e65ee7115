"""Train: `python train.py fit --config configs/demo.yaml` (any key can be overridden: `--trainer.max_steps 10`)."""

import sys

from sr3d.training.cli import run

if __name__ == "__main__":
    sys.exit(run())
