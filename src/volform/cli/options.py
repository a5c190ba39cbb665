"""Whole numbers that the command line takes."""

import argparse


def seed(text: str) -> int:
    """A seed of at most 64 bits."""
    return whole(text, -(2**63), 2**63 - 1, "a key has 64 bits")


def whole(text: str, least: int, most: int, why: str) -> int:
    """A whole number within bounds.

    Raises:
        argparse.ArgumentTypeError: for all else; the parser makes one line of it.
    """
    try:
        number = int(text)
    except ValueError:  # no number, or one of thousands of digits
        number = least - 1
    if not least <= number <= most:
        shown = text if len(text) <= 40 else f"{text[:20]}... of {len(text)} characters"
        raise argparse.ArgumentTypeError(
            f"`{shown}` should be a whole number from {least} to {most}: {why}"
        )
    return number
