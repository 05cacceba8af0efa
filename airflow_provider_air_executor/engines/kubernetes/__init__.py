"""Attempts as Pods of Kubernetes, one each or several short ones in one, through the API server alone.

The manager calls ``engine.py``, whose options are in ``options.py``. ``handles.py`` persists what the next manager
needs.

``controller.py`` reconciles Pods in a thread of its own: ``watcher.py`` keeps their status, ``start_checks.py`` finds
those that cannot start, ``log_reader.py`` reads their output, and ``progress.py`` emits how far the attempts are.
``client.py`` sends the requests to the API server, and ``credentials.py`` finds out where that is.

Without input or output: ``manifest.py`` and ``batches.py`` make manifests, ``pod_status.py`` reads how a Pod stands,
and ``endings.py`` decides how an attempt has ended. ``output.py`` splits what a container prints.
The first process of a container runs the scripts in ``shim/``.
"""
