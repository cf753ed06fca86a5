"""`python -m stages.quantize JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.quantize.config import Config
from stages.quantize.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
