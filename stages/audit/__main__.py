"""`python -m stages.audit JOB.json`: see `stages/contract.py`."""

import sys

from stages.audit.config import Config
from stages.audit.stage import run
from stages.contract import main

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
