"""`python -m stages.bundle JOB.json`: see `stages/contract.py`."""

import sys

from stages.bundle.config import Config
from stages.bundle.stage import run
from stages.contract import main

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
