"""What is done to many rows at once: each operation makes new texts of the cells of a column."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vec_pipeline.query import META
from vec_pipeline.record import UserError

CELLS_AT_ONCE = 64  # replaced, before their lengths are checked: each letter of a text can become 1,000
LONGEST_CELL = 100_000  # characters
SENTENCE = re.compile(r"(?:^|[.!?…]\s|\n)\W*\w")  # how one begins, up to its first letter


def whole(text: str) -> str:
    """The text without zero characters, which no CSV of ours has. Raises ValueError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a character is not whole") from None
    return text.replace("\0", "")


Whole = Annotated[str, AfterValidator(whole)]
Name = Annotated[Whole, Field(max_length=200)]
Text = Annotated[Whole, Field(min_length=1, max_length=1000)]


class Operation(BaseModel):
    """An operation on a column. Cells that are empty stay empty, unless it says otherwise.

    of_text: whether the column must hold text.
    """

    model_config = ConfigDict(extra="forbid")
    of_text: ClassVar[bool] = True

    column: Name

    def changed(self, cells: Sequence[str]) -> Sequence[str | None]:
        """The new texts of some cells, in their order; None for what the models wrote. Raises UserError."""
        return [self.new(cell) if cell else cell for cell in cells]

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

    def changed(self, cells: Sequence[str]) -> Sequence[str]:
        pattern = self.find if self.regex else META.sub(lambda found: "\\" + found[0], self.find)
        pattern = pattern if self.match_case else f"(?i){pattern}"
        by = self.by if self.regex else self.by.replace("\\", "\\\\")
        found: list[str] = []
        for start in range(0, len(cells), CELLS_AT_ONCE):
            few = pa.array(cells[start : start + CELLS_AT_ONCE], pa.string())
            try:
                replaced = pc.replace_substring_regex(few, pattern, by)
            except pa.ArrowInvalid as error:
                raise UserError(f"{self.find!r} cannot be replaced by {self.by!r}: {reason_of(error)}") from None
            if pc.max(pc.utf8_length(replaced)).as_py() > LONGEST_CELL:
                raise UserError(f"{self.column} would get a text of more than {LONGEST_CELL:,} characters")
            found += replaced.to_pylist()
        return found

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
    text: Text

    def new(self, cell: str) -> str:
        word = re.escape(self.text.strip())
        if re.match(rf"{word}(?!\w)", cell, re.IGNORECASE):
            return cell
        rest = re.sub(rf",\s*{word}\s*(?=,|$)", "", cell, flags=re.IGNORECASE)
        return f"{self.text.strip()}, {rest}"

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
    """Adds a keyword at the end, to empty lists too, or removes it."""

    kind: Literal["add_keyword", "remove_keyword"]
    keyword: Text

    def changed(self, cells: Sequence[str]) -> Sequence[str]:
        return [self.new(cell) for cell in cells]

    def items(self, items: list[str]) -> list[str]:
        keyword = self.keyword.strip()
        without = [item for item in items if item.casefold() != keyword.casefold()]
        if self.kind == "remove_keyword":
            return without
        return items if len(without) < len(items) else [*items, keyword]

    def what(self) -> str:
        verb, preposition = ("add", "to") if self.kind == "add_keyword" else ("remove", "from")
        return f'{verb} "{self.keyword}" {preposition} {self.column}'


class RenameKeyword(OfKeywords):
    """Gives a keyword another name; where the list has that one already, it is not there twice."""

    kind: Literal["rename_keyword"]
    keyword: Text
    to: Text

    def items(self, items: list[str]) -> list[str]:
        names = [item.casefold() for item in items]
        old, new = self.keyword.strip(), self.to.strip()
        if old.casefold() not in names:
            return items
        return distinct(new if name in (old.casefold(), new.casefold()) else item
                        for item, name in zip(items, names, strict=True))  # fmt: skip

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
