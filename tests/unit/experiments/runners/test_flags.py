"""Flags with another name than before."""

import logging

from experiments.runners.flags import current_flags


def test_an_old_name_works_and_warns_once(caplog):
    """Catches: an old flag that fails or works silently; a warning for every use."""
    with caplog.at_level(logging.WARNING):
        flags = current_flags(["paper", "--data.max-rejected", "0.1", "--data.max_rejected=0.2"])
    assert flags == ["paper", "--data.max-unusable", "0.1", "--data.max-unusable=0.2"]
    assert [record.getMessage() for record in caplog.records] == [
        "--data.max-rejected is now called --data.max-unusable."
    ]


def test_values_and_other_flags_stay(caplog):
    """Catches: a value that is taken for a flag, or a flag whose end looks like an old one."""
    arguments = ["--data.path", "data.max-rejected", "--mydata.max-rejected", "1"]
    assert current_flags(arguments) == arguments
    assert not caplog.records
