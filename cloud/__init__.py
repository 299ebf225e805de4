"""What runs on the machines of a cluster beside Ray, and what an account needs for it."""
