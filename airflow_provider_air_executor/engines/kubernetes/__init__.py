"""Attempts as Pods of Kubernetes, one each or several short ones in one, through the API server alone.

``engine.py`` is what the manager talks to, ``handles.py`` keeps what was handed over, ``attendant.py`` sees Pods to
their end, in a thread of its own, ``attended.py`` holds what it knows of them, and ``endings.py`` says how they ended.
``pods.py`` says what a Pod looks like and reads how it stands, ``output.py`` puts what it prints into a log, and
``bundles.py`` is for several attempts in one. ``api.py`` asks the API server, and ``credentials.py`` knows where that
is and who we are.
"""
