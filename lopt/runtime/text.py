"""Names from outside, such as those of runs, tasks and labels, in texts for people: what a terminal or Markdown would take for more."""

from rich.markup import escape


def plain(text: str) -> str:
    r"""A text on one line, without what a terminal obeys: escape sequences, and marks that turn the direction of writing.

    Example:
      >>> print(plain("a\tb\n\x1b[31mc"))
      a b \x1b[31mc
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)


def terminal_text(text: str) -> str:
    r"""A text as the tables of rich show it: brackets in it are no styles.

    Example:
      >>> print(terminal_text("[red]a"))
      \[red]a
    """
    return escape(plain(text))


def markdown_text(text: str) -> str:
    r"""A text as Markdown shows it in a line or in a cell of a table: neither HTML, nor a picture from elsewhere, nor another cell.

    Example:
      >>> print(markdown_text("a|b <script> ![x](y)"))
      a\|b &lt;script> !\[x](y)
    """
    return plain(text).replace("|", "\\|").replace("<", "&lt;").replace("![", "!\\[")
