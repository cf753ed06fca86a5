"""`python -m stages.compress JOB.json`: see `stages/contract.py`."""

import sys

from stages.compress.config import Config
from stages.compress.stage import run
from stages.contract import main

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
