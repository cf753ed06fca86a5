"""`python -m stages.tokenize JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.tokenize.config import Config
from stages.tokenize.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
