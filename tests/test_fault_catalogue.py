"""Every fault of docs/reliability.md is the name of a test, and the other way round."""

import ast
import re
from collections import Counter
from pathlib import Path

from conftest import FAULT_NAME

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
# How many faults of each kind there are.
CATALOGUE = {
    "C": 5,
    "D": 4,
    "E": 2,
    "F": 3,
    "I": 5,
    "K": 4,
    "M": 6,
    "N": 2,
    "P": 1,
    "S": 1,
    "T": 4,
    "X": 6,
}


def ids_of_tests() -> set[str]:
    """The ids in the names of all test functions."""
    found: set[str] = set()
    for path in TESTS.glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            match = FAULT_NAME.match(getattr(node, "name", ""))
            if match and isinstance(node, ast.FunctionDef):
                found |= {each.upper() for each in match[1].strip("_").split("_")}
    return found


def test_each_fault_is_the_name_of_a_test():
    listed = re.findall(r"^\| ([A-Z]\d) \|", PAGE.read_text(), flags=re.M)
    assert len(listed) == len(set(listed))
    assert Counter(each[0] for each in listed) == CATALOGUE
    assert set(listed) == ids_of_tests()
