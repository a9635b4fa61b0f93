"""The main job: a list of methods on one manifest -> predictions -> one report.

Data flow: settings -> manifest (given, or indexed and split here) -> one run folder per method and seed -> judge ->
`report.json`, from which the pages are drawn. A run that is complete and still valid is read, not repeated.
"""

from thoraclip.study.demo import demo_study
from thoraclip.study.plan import plan_study
from thoraclip.study.reading import read_study
from thoraclip.study.running import run_study
from thoraclip.study.settings import MethodEntry, StudyConfig

__all__ = ["MethodEntry", "StudyConfig", "demo_study", "plan_study", "read_study", "run_study"]
