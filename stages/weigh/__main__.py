"""`python -m stages.weigh JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.weigh.config import Config
from stages.weigh.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
