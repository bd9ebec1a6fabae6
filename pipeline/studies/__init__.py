"""Studies, each one command: `python -m pipeline.studies.NAME`. Their threads wait as those of the stages do."""

from pipeline.launch import settle_threads

settle_threads()  # before a study loads torch
