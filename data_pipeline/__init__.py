"""From a MiniDataset of videos to batches of uint8 clips, in an order that is a pure function.

    annotations -> index -> split -> plan -> window -> guard -> clips -> batches (one process)
                                                            -> blocks -> streaming (Ray Data)

A window is decoded (`timeline`, `decode`) from wherever it lies (`storage`, `media`) and cut into
clips (`augment`) in a process of its own (`guarded`, which `guard` starts): a broken file may crash
it.

Everything but `streaming` is plain functions over numpy, pyarrow and PyAV. The legend for
shapes, used throughout: N clips, T frames, C = 3 channels (RGB), H rows, W columns.
"""
