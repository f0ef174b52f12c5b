"""The exception whose message is meant for the user, without a traceback."""


class UserError(Exception):
    """Something the user can set right: the message names the value, what was expected and what to do."""
