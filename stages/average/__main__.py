"""`python -m stages.average JOB.json`: see `stages/contract.py`."""

import sys

from stages.average.config import Config
from stages.average.stage import run
from stages.contract import main

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
