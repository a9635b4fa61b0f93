"""What the server of `tests.forked` loads once; each process that it forks has it from the start."""

import accelerate  # noqa: F401
import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
import transformers.models.clip.modeling_clip  # noqa: F401

import thoraclip.cli.app
import thoraclip.methods.finetune
import thoraclip.study.running  # noqa: F401
