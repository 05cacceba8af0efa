"""Processes, clocks and environments of this machine. Nothing here depends on jobs."""
