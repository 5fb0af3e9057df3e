"""The settings of every command: one frozen dataclass each, whose fields are its flags and its keys in params.yaml.

pydantic checks them, because it reads strings from the command line and values from YAML by the same types, and its
errors name the place, the value and the choices. argparse (`command_line`) stays in charge of the command line itself.
"""

from __future__ import annotations

from pipeline.config.analysis import Advise, Audit, Report, Run, Suggest
from pipeline.config.base import Address, Command, OfCodes, OfDataset, Project
from pipeline.config.classifiers import Classify, Compare, Evaluate, Export, Predict, Select
from pipeline.config.fields import (
    EXPERIMENT,
    GRIDS,
    GROUPS,
    MACHINE,
    NEAR_DISTANCE,
    NEAR_DUPLICATES,
    NETWORK,
    SETTINGS,
    Grid,
    choices_of,
    extra_of,
)
from pipeline.config.finetuning import Finetune, Weigh
from pipeline.config.images import Cache, Extract, Prepare, Similar, Verify

__all__ = [
    "COMMANDS",
    "EXPERIMENT",
    "GRIDS",
    "GROUPS",
    "MACHINE",
    "NEAR_DISTANCE",
    "NEAR_DUPLICATES",
    "NETWORK",
    "SETTINGS",
    "Address",
    "Advise",
    "Audit",
    "Cache",
    "Classify",
    "Command",
    "Compare",
    "Evaluate",
    "Export",
    "Extract",
    "Finetune",
    "Grid",
    "OfCodes",
    "OfDataset",
    "Predict",
    "Prepare",
    "Project",
    "Report",
    "Run",
    "Select",
    "Similar",
    "Suggest",
    "Verify",
    "Weigh",
    "choices_of",
    "extra_of",
]

COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "prepare": Prepare,
    "extract": Extract,
    "advise": Advise,
    "classify": Classify,
    "evaluate": Evaluate,
    "select": Select,
    "report": Report,
    "audit": Audit,
    "suggest": Suggest,
    "predict": Predict,
    "similar": Similar,
    "export": Export,
    "weigh": Weigh,
    "finetune": Finetune,
    "compare": Compare,
    "cache": Cache,
    "verify": Verify,
}
"""The settings of each command, in the order in which people meet them; also the sections of params.yaml."""
