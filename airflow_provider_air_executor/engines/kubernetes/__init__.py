"""The Kubernetes runner: a Pod for each attempt, or for several short ones, through the API server alone.

``runner.py`` is what the manager talks to, ``notes.py`` keeps what was handed over, ``attendant.py`` sees Pods to their
end, in a thread of its own, ``attended.py`` holds what it knows of them, and ``endings.py`` says how they ended.
``pods.py`` says what a Pod looks like and reads how it stands, ``output.py`` puts what it prints into a log, and
``bundles.py`` is for several attempts in one. ``api.py`` asks the API server, and ``credentials.py`` knows where that
is and who we are.
"""
