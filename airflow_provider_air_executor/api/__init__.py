"""The reading half of the HTTP API: what the pages in Airflow's UI and ``/v1`` of a server have in common.

It works on :class:`~..jobs.interface.Jobs`. Who asks, and what he may see of it, is a :class:`.view.View`.
"""
