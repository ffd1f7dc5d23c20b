"""What ends a command with one line to the user."""

import signal


class UserError(ValueError):
    """A mistake that its reader can mend.

    The message is one line: it names the file or key and the way out. The command line prints it without a traceback.
    """


class Stopped(Exception):
    """Work was asked to stop by a signal, and all of it is saved.

    Args:
        number: The signal's.
        where: What was done last.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after {where}; the same command goes on from there")
        self.number = number
