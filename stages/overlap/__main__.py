"""`python -m stages.overlap JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.overlap.config import Config
from stages.overlap.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
