"""`python -m stages.vocabulary JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.vocabulary.config import Config
from stages.vocabulary.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
