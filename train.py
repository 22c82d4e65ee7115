"""Train: `python train.py fit --config configs/demo.yaml` (any key can be overridden: `--trainer.max_steps 10`)."""

from sr3d.training.cli import main

if __name__ == "__main__":
    main()
