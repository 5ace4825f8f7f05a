"""What a person did wrong, told in one line."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what would be right; run.py prints it without a traceback."""
