"""Attempts as processes of this machine: a shell for each, or a fork of a process that has imported what it needs."""
