"""The server: the job filesystem of this machine for clients on other machines, over HTTP."""
