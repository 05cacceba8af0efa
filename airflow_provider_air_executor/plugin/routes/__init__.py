"""The routes below ``/air-executor``, by subject; each asks for the rights that :mod:`..access` describes."""
