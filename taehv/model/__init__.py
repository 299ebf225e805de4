"""The network, its variants, and the files that its weights come in."""

from taehv.model.build import build_model
from taehv.model.initialise import initialise_near_identity
from taehv.model.network import TAEHV
from taehv.model.variants import ModelConfig

__all__ = ["TAEHV", "ModelConfig", "build_model", "initialise_near_identity"]
