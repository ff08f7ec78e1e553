"""What a job's end means to who submitted it."""

import pytest

from cluster.jobs import Job, last_error_line


def job(status: str, code: int | None = None, message: str = "") -> Job:
    return Job("corpus-1", status, {}, message, 0.0, 1.0, code)


@pytest.mark.parametrize(
    "status, code, expected",
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", -9, 137),  # Killed by a signal: as a shell says it.
        ("FAILED", None, 1),  # It never came to run its command.
        ("STOPPED", None, 143),
    ],
)
def test_exit_codes_are_those_of_a_shell(status: str, code: int | None, expected: int) -> None:
    assert job(status, code).exit_code == expected


def test_the_last_error_is_what_the_command_said() -> None:
    log = "corpus: read 3/4\nmanta: error: data.txt:7: bad\n\nray: a last word of something else\n"
    assert job("FAILED", 2, log).last_error == "data.txt:7: bad"
    traceback = 'Traceback (most recent call last):\n  File "x"\nValueError: no\n\n'
    assert last_error_line(traceback) == "ValueError: no"
    assert last_error_line("") == ""
    assert job("SUCCEEDED", 0, "manta: error: of an earlier attempt").last_error == ""
