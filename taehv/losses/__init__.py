"""What the network is trained towards: reconstruction, a teacher, a discriminator."""
