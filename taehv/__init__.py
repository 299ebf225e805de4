"""The TAEHV network and its training: a tiny autoencoder for video that others' weights fit."""
