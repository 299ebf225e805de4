"""What every life of a bare run imports, once: lives are forked from a server that has it."""

import os

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
torch.set_num_threads(1)

import deepspeed  # noqa: E402, F401
from diffusers import AutoencoderKLCogVideoX  # noqa: E402, F401

import tests.faults.bare_run  # noqa: E402, F401
