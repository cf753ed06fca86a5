"""`python -m stages.evaluate JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.evaluate.config import Config
from stages.evaluate.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
