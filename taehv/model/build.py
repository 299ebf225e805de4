"""A network with the weights it starts from."""

from __future__ import annotations

from taehv.model.initialise import initialise_near_identity
from taehv.model.network import TAEHV
from taehv.model.variants import ModelConfig
from taehv.model.weights import load_weights


def build_model(config: ModelConfig) -> TAEHV:
    """Build the network with the weights it starts from: config.pretrained, or from scratch.

    Raises TrainingError where the file cannot be read or does not fit.
    """
    model = TAEHV(config)
    if config.pretrained:
        load_weights(model, config.pretrained)
    else:
        initialise_near_identity(model)
    return model
