"""The Kubernetes runner: a Pod for each attempt, through the API server alone.

``runner.py`` is what the manager talks to, ``attendant.py`` sees each Pod through to its end, in a thread of its own,
``pods.py`` says what a Pod looks like and reads how it stands, ``output.py`` puts what it prints into the task's log,
``api.py`` asks the API server, and ``credentials.py`` knows where that is and who we are.
"""
