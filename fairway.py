"""Fairway from Python: open what was made, run, compare. See docs/notebook.md.

    import fairway

    fairway.run("quickstart", scale="smoke", seed=1)
    fairway.open("quickstart/smoke/1/train").curve
    fairway.runs()
    fairway.compare("pr714", "pr1232")

Importing it imports neither torch nor Prefect. Nothing of Fairway imports this, so no stage's key has it.
"""

from flows.notebook import Artifact, Comparison, Result, Runs, compare, open, run, runs

__all__ = ["Artifact", "Comparison", "Result", "Runs", "compare", "open", "run", "runs"]
