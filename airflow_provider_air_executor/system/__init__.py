"""What there is to know and to do about processes, clocks and environments of this machine; nothing of jobs."""
