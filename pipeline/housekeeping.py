"""The sections of params.yaml that change no result: no stage depends on them, and the run card leaves them out."""

from pipeline.options import Natural, NotNegative, Positive, Section, Whole


class HousekeepingParams(Section):
    """What changes no result: processes, bounds of memory, and how training is fed, saved and watched."""

    workers: Natural  # processes that decode images, masks and predictions
    max_pixels: Natural  # of an image in an archive; a larger header is refused before it is decoded
    predict_max_pixels: Natural  # the same of an image given to the command `predict`
    loader_workers: Whole  # processes that cut tiles; 0 cuts them between steps
    checkpoint_every_s: Positive
    score_every_epochs: Whole  # look at the held-out fold; 0 never
    score_images: Natural  # how many held-out images a look takes


class ClusterParams(Section):
    """What a task of a cluster asks for, and when it is given up. It changes no result."""

    cpus: NotNegative
    gpus: NotNegative
    memory_gib: NotNegative
    patience_s: Positive  # a task that has made no step for so long is started again
    rest_s: NotNegative  # from a task that was lost to the next try: by then its files are let go of
