"""The exceptions that a user is meant to see."""


class UserError(Exception):
    """A mistake that the user can mend: bad input, a missing file, an impossible value.

    The message is one line that names the place, the value and the mend. The command line prints it without
    a traceback and exits with code 2.
    """


class StorageError(UserError):
    """The disk or the object storage of one machine fails, for now: other processes may not meet it."""
