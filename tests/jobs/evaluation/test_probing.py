"""The network is probed as it is used."""

import torch

from jobs.evaluation.probing import in_constant_memory
from taehv.evaluation.methods import NetworkMethod
from taehv.model import ModelConfig, build_model
from tests.helpers.natural_clips import natural_clips


def test_frame_by_frame_a_network_makes_the_same() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8)))
    network = NetworkMethod(model, "network", "network")
    for frames in (9, 11):
        clip = natural_clips(1, frames, 48)
        with torch.no_grad():
            made = in_constant_memory(network)(clip)
        torch.testing.assert_close(made, network.clip(clip), rtol=0, atol=1e-5)
