"""Attempts as batch jobs of a system that shares the job filesystem, and that is asked by its command line.

What is peculiar to one such system is its :class:`~.dialect.Dialect`.
"""
