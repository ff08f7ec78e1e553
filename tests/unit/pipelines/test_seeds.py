"""Every stage refuses a negative seed, which generators refuse only once the work has begun."""

import importlib

import pytest
from pydantic import ValidationError

from pipelines.cli import STAGES

CONFIGS = [
    getattr(importlib.import_module(f"{command.package}.config"), command.config)
    for command in STAGES.values()
    if command.config != "ServeConfig"
]
SEEDS = [(config, name) for config in CONFIGS for name in config.model_fields if name.endswith("seed")]


def test_most_stages_have_a_seed():
    assert len(SEEDS) >= 8


@pytest.mark.parametrize("config, name", SEEDS)
def test_a_negative_seed_is_refused(config, name):
    with pytest.raises(ValidationError, match=f"{name}\n.*greater than or equal to 0"):
        config.model_validate({name: -1, "source": "python-stdlib"} if name == "split_seed" else {name: -1})
