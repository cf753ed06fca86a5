"""`python -m stages.train JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.train.config import Config
from stages.train.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
