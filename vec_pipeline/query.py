"""Which rows: the text of `--where` and of the review page, such as `category:vehicle -verified text~"sale"`."""

import difflib
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from vec_pipeline.record import UserError

if TYPE_CHECKING:
    import pyarrow as pa

ALIASES = {
    "category": "categories",
    "keyword": "keywords",
    "flag": "flags",
    "path": "image_path",
    "ocr": "image_text",
}
NOT_SEARCHED = ("image_path", "timestamp", "error", "flags", "verified", "llama_extracted")  # by a word alone
TERM = re.compile(
    r'(?P<no>-)?(?:(?P<name>\w[\w.]*)(?P<op>:|~|!=|<=|>=|<|>|=)(?P<values>(?:"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/|[^\s"])*)'
    r'|"(?P<phrase>(?:[^"\\]|\\.)*)"|(?P<word>[^\s"]+))(?=\s|$)'
)
VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"(?=,|$)|/((?:[^/\\]|\\.)*)/(?=,|$)|([^,]+)|(?<=,)|^$')
TIME = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")  # or the beginning of one
OF_OTHERS = ("AND", "OR", "NOT", "&&", "||", "!")  # how other languages join terms
META = re.compile(r"[\\.+*?()|\[\]{}^$/]")
Holds = Callable[["pa.Table"], "pa.BooleanArray"]  # which rows of a table a condition holds for


class Value(NamedTuple):
    text: str
    is_regex: bool = False


class Query:
    """Rows of a CSV that all terms of a text hold for.

    A term is NAME:VALUE, the cell or one of its items is VALUE; NAME~TEXT, it contains TEXT; NAME~/REGEX/, it matches;
    NAME<NUMBER and <=, >, >=, =; NAME, it is not empty; or a word or a "quoted phrase", which a text of the row
    contains. A comma between values means either, a minus before a term its opposite. Letter case does not count.

    types: of the columns of the CSV, by name.
    columns: that `mask` needs.

    Raises UserError where the text is not a query.
    """

    def __init__(self, text: str, types: Mapping[str, str]) -> None:
        self._types = types
        self._masks: list[Holds] = []
        self.columns: list[str] = []
        place = 0
        for found in TERM.finditer(text):
            if text[place : found.start()].strip():
                break
            place = found.end()
            self._masks.append(self._term(found))
        if text[place:].strip():
            raise UserError(
                f"query {text!r}: {text[place:].strip()!r} cannot be read: put quotes around the whole value"
            )
        self.columns = list(dict.fromkeys(self.columns))

    def mask(self, table: "pa.Table") -> "pa.BooleanArray":
        """Which rows of a table, which has `columns` as CsvReader reads them; bools of shape (rows,), never null."""
        import pyarrow as pa
        import pyarrow.compute as pc

        everything = pa.array([True] * len(table), pa.bool_())
        return reduce(pc.and_, (mask(table) for mask in self._masks), everything)

    def _term(self, found: re.Match[str]) -> Holds:
        if found["word"] in OF_OTHERS or found["op"] == "!=":
            raise UserError(
                f"query: {found[0]!r} is not of this language: all terms hold, -TERM is not, NAME:A,B is either"
            )
        name = found["name"] or (found["word"] if self._column(found["word"] or "") else "")
        if not name:
            holds = self._contains_word(unescaped(found["phrase"]) if found["word"] is None else found["word"])
        else:
            column = self._column(name)
            if not column:
                raise UserError(unknown(name, self._types))
            self.columns.append(column)
            holds = self._condition(column, found["op"], values_of(found["values"] or ""))
        return negated(holds) if found["no"] else holds

    def _column(self, name: str) -> str:
        """The column that a name means, empty for none."""
        return name if name in self._types else ALIASES.get(name, "") if ALIASES.get(name) in self._types else ""

    def _contains_word(self, word: str) -> Holds:
        names = [name for name, kind in self._types.items() if kind == "text" and name not in NOT_SEARCHED]
        self.columns += names
        return any_of([containing(name, word) for name in names])

    def _condition(self, name: str, operator: str | None, values: list[Value]) -> Holds:
        kind = "time" if name == "timestamp" else self._types[name]
        if operator is None:
            return lambda table: has_value(table[name])
        if kind == "vector":
            raise UserError(
                f"query: {name} holds vectors, of which only their presence can be asked: {name} or -{name}"
            )
        if operator in ("<", "<=", ">", ">=", "=") and kind not in ("number", "time"):
            raise UserError(
                f"query: {name} is text, which {operator!r} does not compare: use {name}:VALUE or {name}~TEXT"
            )
        if kind == "number" and operator != "~":
            return any_of([compared(name, operator, number_of(name, each)) for each in values])
        if kind == "time" and operator != "~":
            return any_of([compared_as_text(name, operator, time_of(name, each)) for each in values])
        return any_of([matching(name, kind, operator, each) for each in values])


def values_of(text: str) -> list[Value]:
    """The values of a term: bare, "quoted" or /regular expressions/, with commas between."""
    found = []
    for quoted, regex, bare in VALUE.findall(text):
        is_quoted = not bare and not regex
        found.append(Value(unescaped(quoted)) if is_quoted else Value(regex, True) if regex else Value(bare))
    return found


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def unknown(name: str, types: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, [*types, *ALIASES], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"columns are {', '.join(types)}"
    return f'query: unknown column {name!r} ({hint}); to look for the text itself, write it as "..."'


def number_of(name: str, value: Value) -> float:
    try:
        return float(value.text)
    except ValueError:
        raise UserError(f"query: {name} is compared with {value.text!r}, which is not a number") from None


def time_of(name: str, value: Value) -> str:
    if not TIME.fullmatch(value.text):
        raise UserError(f"query: {name} is compared with {value.text!r}, which is no time such as 2026-11-26T08:30")
    return value.text.replace(" ", "T")


def negated(holds: Holds) -> Holds:
    import pyarrow.compute as pc

    return lambda table: pc.invert(holds(table))


def any_of(masks: list[Holds]) -> Holds:
    import pyarrow as pa
    import pyarrow.compute as pc

    def mask(table: "pa.Table") -> "pa.BooleanArray":
        return reduce(pc.or_, (each(table) for each in masks), pa.array([False] * len(table), pa.bool_()))

    return mask


def plain(mask: "pa.ChunkedArray") -> "pa.BooleanArray":
    """One array of bools; an empty cell fulfils nothing."""
    import pyarrow.compute as pc

    filled = pc.fill_null(mask, False)
    return filled.combine_chunks() if hasattr(filled, "combine_chunks") else filled


def has_value(cells: "pa.ChunkedArray") -> "pa.BooleanArray":
    import pyarrow as pa
    import pyarrow.compute as pc

    return plain(pc.not_equal(cells, "") if pa.types.is_string(cells.type) else pc.is_valid(cells))


def containing(name: str, text: str) -> Holds:
    import pyarrow.compute as pc

    return lambda table: plain(pc.match_substring(as_text(table[name]), text, ignore_case=True))


def matching(name: str, kind: str, operator: str, value: Value) -> Holds:
    """Cells of text, JSON or numbers: contain a text, match a regular expression, or have it among their items."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if operator == "~" and not value.is_regex:
        return containing(name, value.text)
    pattern = value.text if value.is_regex else item_pattern(name, kind, value.text)
    try:
        pc.match_substring_regex(pa.array([""]), pattern, ignore_case=True)
    except pa.ArrowInvalid:
        raise UserError(f"query: {pattern!r} is not a regular expression") from None
    return lambda table: plain(pc.match_substring_regex(as_text(table[name]), pattern, ignore_case=True))


def item_pattern(name: str, kind: str, text: str) -> str:
    """What matches a cell that is `text`, or has it between commas, in flags between spaces, in JSON between quotes."""
    escaped = META.sub(lambda found: "\\" + found[0], text)
    if kind == "json":
        return rf'"{escaped}"\s*(?:[,\]}}]|$)'  # the name of an entry has a colon after it
    border = " " if name == "flags" else ","
    return f"(?:^|{border}) *{escaped} *(?:{border}|$)" if text else "^$"


def as_text(cells: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow as pa
    import pyarrow.compute as pc

    return cells if pa.types.is_string(cells.type) else pc.cast(cells, pa.string())


def compared(name: str, operator: str, number: float) -> Holds:
    function = comparison(operator)
    return lambda table: plain(function(table[name], number))


def compared_as_text(name: str, operator: str, text: str) -> Holds:
    """A time against the beginning of one, such as 2026-11 or 2026-11-26T08; `:` and `=` ask for all within it."""
    import pyarrow.compute as pc

    function = comparison(operator)

    def mask(table: "pa.Table") -> "pa.BooleanArray":
        times = pc.utf8_slice_codeunits(pc.strftime(table[name], "%Y-%m-%dT%H:%M:%S"), 0, len(text))
        return plain(function(times, text))

    return mask


def comparison(operator: str) -> Callable[..., Any]:
    import pyarrow.compute as pc

    names = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
    function: Callable[..., Any] = getattr(pc, names.get(operator, "equal"))
    return function
