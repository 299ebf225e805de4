"""What jobs/doctor.py looks at, a file per area. In each, `look...` gathers facts, and `judge...`,
which touches nothing, makes findings of them."""
