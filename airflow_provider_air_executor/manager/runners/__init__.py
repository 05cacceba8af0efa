"""How one task runs."""
