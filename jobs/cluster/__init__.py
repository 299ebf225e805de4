"""Ray: connecting to it, its nodes and their resources, and sharing work out over them."""
