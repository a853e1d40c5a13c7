"""What is done to many rows at once: each operation makes new texts of the cells of a column."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vec_pipeline.query import META
from vec_pipeline.record import UserError

MADE_AT_ONCE = 50_000_000  # characters that a replacement can make of cells before their lengths are checked
LONGEST_CELL = 100_000  # characters
SENTENCE = re.compile(r"(?:^|[.!?…]\s|\n)\W*(?:\w|\Z)")  # how one begins; \Z: else each of many \n is tried to the end


def whole(text: str) -> str:
    """The text without zero characters, which no CSV of ours has. Raises ValueError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a character is not whole") from None
    return text.replace("\0", "")


def words(text: str) -> str:
    """Items with commas between them. Raises ValueError where there is none, or a line break, which no item has."""
    if len(text.strip().splitlines()) > 1:
        raise ValueError("it has a line break: use commas")
    if not (items := items_of(text)):
        raise ValueError("it has no word")
    return ", ".join(items)


Whole = Annotated[str, AfterValidator(whole)]
Name = Annotated[Whole, Field(max_length=200)]
Text = Annotated[Whole, Field(min_length=1, max_length=1000)]
Words = Annotated[Text, AfterValidator(words), Field(description="one, or several with commas; no line breaks")]


class Operation(BaseModel):
    """An operation on a column. Cells that are empty stay empty, unless it says otherwise.

    of_text: whether the column must hold text.
    """

    model_config = ConfigDict(extra="forbid")
    of_text: ClassVar[bool] = True

    column: Name

    def changed(self, cells: Sequence[str]) -> Iterable[str | None]:
        """Yield the new texts of some cells, in their order; None for what the models wrote. Raises UserError.

        Texts may be too long for a cell, so that it is better to look at each than to collect them.
        """
        return (self.new(cell) if cell else cell for cell in cells)

    def new(self, cell: str) -> str:
        """The new text of a cell that is not empty."""
        raise NotImplementedError

    def what(self) -> str:
        """What the history calls it."""
        raise NotImplementedError


class Replace(Operation):
    """Replaces a text, or what a regular expression of RE2 matches, which has no slow patterns; also an empty cell."""

    kind: Literal["replace"]
    find: Text
    by: Annotated[Whole, Field(alias="with", max_length=1000, description="\\1 is the first group of `find`, \\0 all")]
    regex: bool = False
    match_case: bool = False

    def changed(self, cells: Sequence[str]) -> Iterator[str]:
        pattern = self.find if self.regex else META.sub(lambda found: "\\" + found[0], self.find)
        pattern = pattern if self.match_case else f"(?i){pattern}"
        by = self.by if self.regex else self.by.replace("\\", "\\\\")
        for few in parts_of(cells, MADE_AT_ONCE // (len(by) + 1)):
            try:
                yield from pc.replace_substring_regex(pa.array(few, pa.string()), pattern, by).to_pylist()
            except pa.ArrowInvalid as error:
                raise UserError(f"{self.find!r} cannot be replaced by {self.by!r}: {reason_of(error)}") from None

    def what(self) -> str:
        return f'replace "{self.find}" by "{self.by}" in {self.column}'


class Affix(Operation):
    """Puts a text in front of each cell, or at its end."""

    kind: Literal["prefix", "suffix"]
    text: Text

    def new(self, cell: str) -> str:
        return self.text + cell if self.kind == "prefix" else cell + self.text

    def what(self) -> str:
        return f'add "{self.text}" {"in front of" if self.kind == "prefix" else "at the end of"} {self.column}'


class Trigger(Operation):
    """Puts a word with a comma in front, unless it is there already; as an item further behind it is moved."""

    kind: Literal["trigger"]
    text: Words

    def new(self, cell: str) -> str:
        word = re.escape(self.text)
        if re.match(rf"{word}(?!\w)", cell, re.IGNORECASE):
            return cell
        rest = re.sub(rf",\s*{word}\s*(?=,|$)", "", cell, flags=re.IGNORECASE)
        return f"{self.text}, {rest}"

    def what(self) -> str:
        return f'put "{self.text}" in front of {self.column}'


class Case(Operation):
    """Changes the case of letters. sentence: a capital at the beginning of each sentence, all else lower."""

    kind: Literal["case"]
    to: Literal["lower", "upper", "sentence"]

    def new(self, cell: str) -> str:
        if self.to == "upper":
            return cell.upper()
        return cell.lower() if self.to == "lower" else SENTENCE.sub(lambda found: found[0].upper(), cell.lower())

    def what(self) -> str:
        return f"{self.to} case in {self.column}"


class OfKeywords(Operation):
    """An operation on the items of a list with commas; letter case does not tell items apart."""

    column: Name = "keywords"

    def new(self, cell: str) -> str:
        before = items_of(cell)
        after = self.items(before)
        return cell if after == before else ", ".join(after)

    def items(self, items: list[str]) -> list[str]:
        raise NotImplementedError


class EditKeyword(OfKeywords):
    """Adds keywords at the end, to empty lists too, or removes them."""

    kind: Literal["add_keyword", "remove_keyword"]
    keyword: Words

    def changed(self, cells: Sequence[str]) -> Iterable[str]:
        return (self.new(cell) for cell in cells)

    def items(self, items: list[str]) -> list[str]:
        wanted = {each.casefold(): each for each in items_of(self.keyword)}
        if self.kind == "remove_keyword":
            return [item for item in items if item.casefold() not in wanted]
        there = {item.casefold() for item in items}
        return [*items, *(each for name, each in wanted.items() if name not in there)]

    def what(self) -> str:
        verb, preposition = ("add", "to") if self.kind == "add_keyword" else ("remove", "from")
        return f'{verb} "{self.keyword}" {preposition} {self.column}'


class RenameKeyword(OfKeywords):
    """Gives a keyword, or each of several, another name; where the list has that one already, it is not there twice."""

    kind: Literal["rename_keyword"]
    keyword: Words
    to: Words

    def items(self, items: list[str]) -> list[str]:
        new = items_of(self.to)
        spelled = {each.casefold(): [each] for each in new} | {old.casefold(): new for old in items_of(self.keyword)}
        if not any(old.casefold() in map(str.casefold, items) for old in items_of(self.keyword)):
            return items
        return distinct(each for item in items for each in spelled.get(item.casefold(), [item]))

    def what(self) -> str:
        return f'rename "{self.keyword}" to "{self.to}" in {self.column}'


class TidyKeywords(OfKeywords):
    """Removes repeated keywords, or sorts them."""

    kind: Literal["unique_keywords", "sort_keywords"]

    def items(self, items: list[str]) -> list[str]:
        return distinct(items) if self.kind == "unique_keywords" else sorted(items, key=str.casefold)

    def what(self) -> str:
        return f"{'remove repeated' if self.kind == 'unique_keywords' else 'sort'} {self.column}"


class Set(Operation):
    """Gives all cells one text."""

    of_text: ClassVar[bool] = False
    kind: Literal["set"]
    value: Annotated[Whole, Field(max_length=LONGEST_CELL)]

    def changed(self, cells: Sequence[str]) -> Sequence[str]:
        return [self.value] * len(cells)

    def what(self) -> str:
        return f'set {self.column} to "{self.value[:40]}"'


class Reset(Operation):
    """Takes corrections back, to what the models wrote. An empty `column` stands for all of them."""

    of_text: ClassVar[bool] = False
    kind: Literal["reset"]

    def changed(self, cells: Sequence[str]) -> Sequence[None]:
        return [None] * len(cells)

    def what(self) -> str:
        return f"reset {self.column or 'all columns'}"


AnyOperation = Annotated[
    Replace | Affix | Trigger | Case | EditKeyword | RenameKeyword | TidyKeywords | Set | Reset,
    Field(discriminator="kind"),
]


def parts_of(cells: Sequence[str], most: int) -> Iterator[list[str]]:
    """Yield consecutive cells of so many characters together, or one that has more."""
    part: list[str] = []
    size = 0
    for cell in cells:
        size += len(cell) + 1
        if part and size > most:
            yield part
            part, size = [], len(cell) + 1
        part.append(cell)
    if part:
        yield part


def items_of(cell: str) -> list[str]:
    return [item.strip() for item in cell.split(",") if item.strip()]


def distinct(items: Iterable[str]) -> list[str]:
    """Without repetitions; of those that differ in letter case alone, the first stays."""
    found: dict[str, str] = {}
    for item in items:
        found.setdefault(item.casefold(), item)
    return list(found.values())


def reason_of(error: Exception) -> str:
    """What RE2 or Arrow says, in one line."""
    return " ".join(str(error).split()).removeprefix("Invalid regular expression: ").replace("(?i)", "")
