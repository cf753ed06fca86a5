"""`python -m stages.corpus JOB.json`: see `stages/contract.py`."""

import sys

from stages.contract import main
from stages.corpus.config import Config
from stages.corpus.stage import run

if __name__ == "__main__":
    sys.exit(main(Config.SPEC, Config, run))
