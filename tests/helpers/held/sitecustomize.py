"""Python imports a module of this name whenever it starts, here in every process of a held job."""

import importlib

# By the name that it has in a process whose PYTHONPATH names this folder.
importlib.import_module("job_gates").install()
