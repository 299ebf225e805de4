"""A video file to clips of uint8 frames, in a process of its own that a broken file may crash."""
