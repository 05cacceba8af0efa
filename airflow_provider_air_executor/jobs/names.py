"""Names for jobs that nobody has named."""

from __future__ import annotations

import os
import re

_MAX_LENGTH = 40


def made_up_name(hint: str) -> str:
    """A valid job name that no other job has, for all practical purposes: what it is about, and some random letters.

    :param hint: a text that says what the job is about, for example its command.
    """
    head = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(hint.rstrip("/")))[:_MAX_LENGTH].strip("-_")
    return f"{head or 'job'}-{os.urandom(4).hex()}"
