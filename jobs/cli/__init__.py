"""What the command lines share: configuration, paths, the terminal, exit codes."""
