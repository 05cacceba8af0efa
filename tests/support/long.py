"""Tests that take long where there are few processors: they run with ``AIR_EXECUTOR_TEST_LONG=1``, before a release."""

from __future__ import annotations

import os

import pytest

IS_WANTED = "AIR_EXECUTOR_TEST_LONG" in os.environ

takes_long = pytest.mark.skipif(not IS_WANTED, reason="takes long; AIR_EXECUTOR_TEST_LONG=1")
