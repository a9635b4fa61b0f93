"""Heavy libraries, loaded once by a process whose forks need them; nothing of the package."""

import accelerate  # noqa: F401
import hypothesis  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pydicom  # noqa: F401
import pytest  # noqa: F401
import scipy.optimize  # noqa: F401
import sklearn.ensemble
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
import transformers.models.blip.modeling_blip
import transformers.models.clip.modeling_clip
import transformers.models.dinov2.modeling_dinov2
import transformers.models.siglip.modeling_siglip  # noqa: F401
