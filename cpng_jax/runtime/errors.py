"""The exceptions whose messages are meant for the user, without a traceback."""


class UserError(Exception):
    """Something the user can set right: the message names the value, what was expected and what to do."""


class BusyError(UserError):
    """Another process is writing to the same folder."""


class DivergedError(UserError):
    """Training left the finite numbers."""


class LostProcessError(UserError):
    """Another process of the run has ended: the same command goes on from the latest checkpoint."""
