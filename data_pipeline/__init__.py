"""From a MiniDataset of videos to batches of uint8 clips, in an order that is a pure function.

    videos: annotations -> index -> split -> plan
    plan -> decoding: window -> sandbox -> clips -> batches (one process)
                                                 -> blocks -> streaming (Ray Data)

A window is decoded (`decoding.timeline`, `decoding.video_file`) from wherever it lies
(`videos.storage`, `decoding.media`) and cut into clips (`decoding.augment`) in a process of its own
(`decoding.sandbox_process`, which `decoding.sandbox` starts): a broken file may crash it.

Everything but `streaming` is plain functions over numpy, pyarrow and PyAV. The legend for
shapes, used throughout: N clips, T frames, C = 3 channels (RGB), H rows, W columns.
"""
