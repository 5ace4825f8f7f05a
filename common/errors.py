"""What a person did wrong, told in one line."""

from typing import Any

from common.shown_text import one_line


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what would be right; run.py prints it without a traceback.

    It is one line without control characters, whatever the names and errors in it hold.
    """

    def __init__(self, message: Any = ""):
        super().__init__(one_line(message))


def check_one_given(**settings: Any) -> None:
    """InputError unless exactly one of the method's settings is given, the others being None."""
    if sum(value is not None for value in settings.values()) != 1:
        told = ", ".join(f"method.{name}={'null' if value is None else value}" for name, value in settings.items())
        raise InputError(f"{told}: exactly one of them is needed; set the other to null.")


def check_share(name: str, value: Any) -> None:
    """InputError when the method's setting `name` is no number in (0, 1)."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"method.{name}={value}: a share between 0 and 1 is needed.")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
