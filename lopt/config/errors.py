"""The base of the errors that lopt raises on purpose."""


class LoptError(Exception):
    """Something was asked for that cannot be done; the message says what is wrong and what to do, and is all that a user must read.

    Every class of error that lopt defines derives from it. An argument of the wrong kind is, as usual in Python, a plain `ValueError`.
    """
