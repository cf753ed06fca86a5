"""Signs of life of a run that cannot speak yet: its worker speaks for it, from taking it until its process does.

A worker of ours names the state of a run that it has taken `Starting`, and counts in a label of the run for as long as
the run's process lives and has not begun. So whoever waits for the run needs no patience with a start that is slow, and
little with one that is silent. Workers of Prefect's own (Docker, Kubernetes) say neither. Imports nothing.
"""

from __future__ import annotations

STARTING = "Starting"  # name of the PENDING state; Prefect lets one PENDING state follow another of another name
COUNT = "fairway.starting"  # the label
BEAT_EVERY_S = 10.0  # whoever lives says so at least this often
START_LIMIT_S = 300.0  # from a worker's taking a run to the run's first word: images may have to be pulled
WORKER = "FAIRWAY_WORKER"  # variable of a run's process: its worker's process, which may end before the run has looked
SAID = "said"  # below the run's logger, loggers of stages' own lines: all others are Prefect's, or ours about it
