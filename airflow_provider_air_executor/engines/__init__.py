"""How attempts run: on this machine, or by an engine elsewhere, all behind one protocol."""
