"""What `finetune` and `baseline` share; what is trained, a step and its validation are there.

    settings.py    TrainingSettings: batch size, steps, learning rate, augmentation, validation, checkpoints
    sampler.py     which images each batch has, and the learning rate of each step
    images.py      the images of a batch, augmented
    folds.py       one training per fold: its images, its files, and the pooled predictions
    steps.py       the loop: resume, steps, log, best weights, early stopping, signals
    checkpoint.py  the file that a killed training goes on from
    processes.py   several processes or machines, through Accelerate

Everything random is a function of the seed, the step and the sample, so that a checkpoint needs no random state.
"""
