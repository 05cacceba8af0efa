"""Attempts as batch jobs of Slurm."""
