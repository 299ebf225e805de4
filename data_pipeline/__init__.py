"""From a MiniDataset of videos to batches of uint8 clips, in an order that is a pure function.

    annotations -> split -> plan -> decode -> augment -> clips -> batches (one process)
                                                               -> streaming (Ray Data)

Everything but `streaming` is plain functions over numpy, pyarrow and PyAV. The legend for
shapes, used throughout: N clips, T frames, C = 3 channels (RGB), H rows, W columns.
"""
