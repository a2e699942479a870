"""What a user can mend: every such error is one line that names the value and the remedy."""


class InputError(ValueError):
    """A wrong argument, file or setting. The commands print it as one line and exit with status 2."""


class TrainingStopped(RuntimeError):
    """Training could not go on (not-a-number loss, full disk). The last good checkpoint is kept."""
