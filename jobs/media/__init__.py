"""Pictures and videos for people to look at."""
