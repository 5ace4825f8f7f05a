"""What a command prints where the terminal, or whatever reads it, does not know every character."""

import codecs
import sys
import unicodedata

NEAREST = {"→": ">", "×": "x", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"'}


def nearest(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: letters without their accents, and what has no likeness as Python writes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(in_ascii, error.object[error.start : error.end])), error.end


def in_ascii(character: str) -> str:
    """ "e" of "é", "fi" of the ligature, "\\u732b" of a character without likeness."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return NEAREST.get(character) or plain or character.encode("ascii", "backslashreplace").decode()


def print_what_can_be_printed() -> None:
    """Standard output and error stop at no character from here on (PYTHONIOENCODING=ascii, a Latin-1 locale).

    Each line is written at its time, so that a log has those of both in their order.
    """
    codecs.register_error("nearest", nearest)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's or a test's may be of another kind
            stream.reconfigure(errors="nearest", line_buffering=True)
