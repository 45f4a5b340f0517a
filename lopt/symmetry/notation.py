"""The notation of weight specs, after that of einops: one string of axis names per weight.

"pixels! hidden"         two axes; `!`: the order carries meaning, not permutable
"(h! w! c) classes!"     one array axis made of three named factors, row-major
"embed heads dim@heads"  `@`: every head has a permutation of its own for `dim` (a wreath product with the permutation of heads)
"(x! | hidden) gates"     `|`: one array axis made of parts that lie one behind the other, as `[x, h] @ W` reads them
"1 embed", ""            `1`: an axis of size one; "": a rank-0 leaf
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from lopt.config.errors import LoptError

_NAME = r"[A-Za-z_][A-Za-z0-9_./:-]*"
_TOKEN = re.compile(rf"\s*(\(|\)|\||1(?![A-Za-z0-9_])|{_NAME}(?:!|@{_NAME})?)")


class SpecError(LoptError, ValueError):
    """A spec that cannot be parsed or does not describe the params; the message names the leaf."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """One named index.

    Attributes:
      name: of the permutation.
      fixed: its order carries meaning.
      owner: name of the index that this one is nested in: each of the owner's indices has a permutation of this name of its own.
    """

    name: str
    fixed: bool = False
    owner: str | None = None

    def __str__(self) -> str:
        return self.name + "!" * self.fixed + (f"@{self.owner}" if self.owner else "")


Part = tuple[Factor, ...]  # the factors of an array axis, or of a part of one, slowest first; () is an axis, or part, of size 1


@dataclasses.dataclass(frozen=True)
class Segments:
    """An array axis that is made of parts, one behind the other.

    Attributes:
      parts: at least two.
    """

    parts: tuple[Part, ...]


Axis = Part | Segments


def parts_of(axis: Axis) -> tuple[Part, ...]:
    """The parts of an axis; of one that is not made of parts, itself."""
    return axis.parts if isinstance(axis, Segments) else (axis,)


def map_factors(axis: Axis, change: Callable[[Factor], Factor]) -> Axis:
    """The axis with its factors changed, each by itself."""
    return map_parts(axis, lambda part: tuple(map(change, part)))


def map_parts(axis: Axis, change: Callable[[Part], Part]) -> Axis:
    """The axis with its parts changed, each by itself."""
    return Segments(tuple(map(change, axis.parts))) if isinstance(axis, Segments) else change(axis)


_ONE = Factor("1")  # while a leaf is read: a part of size one


def parse_leaf(path: str, text: Any) -> tuple[Axis, ...]:
    """The factors of each axis of one weight.

    Raises:
      SpecError: naming the leaf, if `text` is not in the notation.

    Example:
      >>> [[str(factor) for factor in axis] for axis in parse_leaf("attention/query", "embed! (heads dim@heads)")]
      [['embed!'], ['heads', 'dim@heads']]
      >>> format_axis(parse_leaf("lstm/kernel", "(x!|hidden) gates")[0])
      '(x! | hidden)'
    """
    if not isinstance(text, str):
        raise SpecError(f"spec leaf '{path}' is {text!r}, not a string of axis names such as 'inputs hidden'")
    axes: list[Axis] = []
    group: list[list[Factor]] | None = None  # the parts of what stands in parentheses
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None or text[match.end() : match.end() + 1] in ("!", "@"):
            raise SpecError(f"spec leaf '{path}': cannot read '{text[position:].strip()}' in '{text}'")
        token, position = match.group(1), match.end()
        if token == "(":
            if group is not None:
                raise SpecError(f"spec leaf '{path}': nested '(' in '{text}'")
            group = [[]]
        elif token == ")":
            if group is None:
                raise SpecError(f"spec leaf '{path}': ')' without '(' in '{text}'")
            if len(group) > 1 and not all(group):
                raise SpecError(f"spec leaf '{path}': nothing beside '|' in '{text}'; a part of size one is written '1'")
            parts = tuple(tuple(factor for factor in part if factor is not _ONE) for part in group)
            axes.append(parts[0] if len(parts) == 1 else Segments(parts))
            group = None
        elif token == "|":
            if group is None:
                raise SpecError(f"spec leaf '{path}': '|' outside '(' and ')' in '{text}'")
            group.append([])
        else:
            factor = _ONE if token == "1" else _factor(token)
            if group is None:
                axes.append(() if factor is _ONE else (factor,))
            else:
                group[-1].append(factor)
    if group is not None:
        raise SpecError(f"spec leaf '{path}': '(' without ')' in '{text}'")
    return tuple(axes)


def _factor(token: str) -> Factor:
    name, _, owner = token.rstrip("!").partition("@")
    return Factor(name, token.endswith("!"), owner or None)


def format_axis(axis: Axis) -> str:
    """One axis as `parse_leaf` reads it."""
    if not axis:
        return "1"
    if isinstance(axis, Segments):
        return f"({' | '.join(' '.join(map(str, part)) or '1' for part in axis.parts)})"
    inside = " ".join(map(str, axis))
    return inside if len(axis) == 1 else f"({inside})"


def bind_owners(path: str, factors: tuple[Factor, ...]) -> tuple[int | None, ...]:
    """The position of the factor that each factor of a leaf is nested in: the nearest of that name to its left, else to its right.

    Raises:
      SpecError: naming the leaf, if it has no factor of the owner's name.
    """
    owners: list[int | None] = []
    for position, factor in enumerate(factors):
        if factor.owner is None:
            owners.append(None)
            continue
        found = [place for place, other in enumerate(factors) if other.name == factor.owner]
        if not found:
            raise SpecError(f"spec leaf '{path}': '{factor}' is nested in '{factor.owner}', which the leaf has no axis of")
        before = [place for place in found if place < position]
        owners.append(before[-1] if before else found[0])
    return tuple(owners)
