"""Faults, brought about on purpose: what a run survives, and that it ends as if nothing happened.

`make test-faults` runs the long forms; tests/test_faults.py has a short form of most of them. Where
a fault strikes is drawn from FAULTS_SEED; a table of what was tried is printed at the end and, as
Markdown, written to the file that FAULTS_TABLE names.
"""
