"""What the server of `tests.forked` loads once; each process that it forks has it from the start."""

import tests.preloaded_libraries  # noqa: F401

import thoraclip.cli.app
import thoraclip.methods.finetune
import thoraclip.study.running  # noqa: F401
