"""What goes wrong by a user's input, as exceptions. Imports nothing."""


class UserError(Exception):
    """A fault that the user can mend; its message says what, where and what to do."""


class UnreadableError(UserError):
    """One file is no usable image; others may be."""


def first_line(error: Exception) -> str:
    """Returns what an exception says, short enough for one line."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return reason.splitlines()[0][:150]
