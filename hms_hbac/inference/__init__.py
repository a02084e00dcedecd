"""Trained runs answer: for rows of a competition, and for recordings of any length (`Reader`)."""

__all__ = ["Reader"]


def __getattr__(name: str) -> object:
    "`Reader`, loaded when it is asked for: the subpackage itself stays light."
    if name == "Reader":
        from .reader import Reader
        return Reader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
