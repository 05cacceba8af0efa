"""What tasks import is learned: the fork server imports ahead what is worth it, and what may be imported ahead.

Tasks report what they have imported (:mod:`.report`). A ledger keeps that by DAG file and by package (:mod:`.ledger`).
Each package is tried in a process of its own (:mod:`.trial`). What saves enough time for its memory is chosen
(:mod:`.worth`). The manager has one :class:`~.learner.Learner` for all of it.
"""
