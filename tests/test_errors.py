"""The one exception for bad input, and the line it shows."""

import pytest

from dd_tasks.errors import InputError, unknown


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("resnet19", "unknown net 'resnet19'; did you mean 'resnet18'? (choices: convnet3, resnet18)"),
        ("zzz", "unknown net 'zzz' (choices: convnet3, resnet18)"),
        ("", "unknown net '' (choices: convnet3, resnet18)"),
    ],
)
def test_unknown_names_the_value_and_the_choices(value, line):
    assert str(unknown("net", value, ["resnet18", "convnet3"])) == line


def test_a_long_list_of_choices_is_summed_up_but_searched():
    many = [f"net{i}" for i in range(1000)]
    line = str(unknown("net", "net_777", many, shown=["net0", "999 more"]))
    assert line == "unknown net 'net_777'; did you mean 'net777'? (choices: net0, 999 more)"


def test_bad_input_is_a_value_error():
    assert isinstance(unknown("net", "x", []), InputError) and issubclass(InputError, ValueError)
