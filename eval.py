"""Evaluate and compare: `python eval.py --protocol NAME --methods A,B` and `python eval.py compare A.json B.json`.

The same as `sr3d eval` and `sr3d compare`.
"""

import sys

from sr3d.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(words if words[:1] == ["compare"] else ["eval", *words]))
