"""The checks of jobs/doctor.py. Functions named `look_at_...` gather facts; those named `judge_...`
touch nothing, and make findings of the facts."""
