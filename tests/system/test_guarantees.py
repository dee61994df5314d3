"""docs/guarantees.md agrees with the tested outage matrix and with the reasons of `/readyz`."""

import pathlib
import re
from typing import Final, get_args

from revocation_service.replication.epoch import Reason
from tests.system.outages import ROWS, table

GUARANTEES: Final = (pathlib.Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_the_outage_matrix_in_the_guarantees_is_the_tested_one() -> None:
    """The table in docs/guarantees.md has exactly the rows and answers of `test_outage_matrix.py`."""
    assert GUARANTEES.split("## The outage matrix\n")[1].split("\n\n", 1)[1] == table(ROWS)


def test_each_reason_of_readyz_is_in_the_guarantees() -> None:
    """docs/guarantees.md names every reason that `/readyz` gives for a limited instance."""
    assert {*get_args(Reason)} <= {*re.findall(r"`(\w+)`", GUARANTEES)}
