"""Where images come from: one file, one source. Which one an argument or a key belongs to is decided here alone."""

import fnmatch
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from operator import length_hint

from vec_pipeline.record import Content, NotFound, Record, Source, SourceOptions, UserError

DEFAULT_OPTIONS = SourceOptions()
UNKNOWN = -1  # length of a source
LOCAL = "folder"  # the module that takes every argument that no other one accepts
LISTS = "list_file"  # that takes every argument which ends as lists do


def open_source(
    arguments: Sequence[str], modules: Iterable[str] = (), options: SourceOptions = DEFAULT_OPTIONS
) -> Source:
    """Make the source of some arguments of the command line, or of the key of one image.

    modules: that define sources beside those of this folder, as dotted paths.

    Raises UserError where an argument cannot be used.
    """
    classes = source_classes(tuple(modules))
    opened = [made(next(cls for cls in classes if cls.accepts(each)), each, options) for each in arguments]
    return opened[0] if len(opened) == 1 else Several(opened)  # type: ignore[return-value]


def made(cls: type[Source], argument: str, options: SourceOptions) -> Source:
    """A source of its class: one that is not of this package may have no use for options."""
    has_options = "options" in inspect.signature(cls.__init__).parameters
    return cls(argument, options.exclude, **({"options": options} if has_options else {}))


def content_of(key: str, modules: Iterable[str] = (), options: SourceOptions = DEFAULT_OPTIONS) -> Content:
    """The bytes of one image. Raises NotFound where there is no such image, UserError where it is none."""
    records = list(islice(open_source([key], modules, options), 2))
    if len(records) > 1:  # a shard that could not be read before, say
        raise NotFound(f"{key} is not one image: name an image")
    if len(records) != 1 or "content" not in records[0].values:
        raise UserError(f"{key} is {records[0].error if records else 'not one image'}: name an image")
    content: Content = records[0].values["content"]
    return content


def local_path(key: str) -> str:
    """The path of a key that stands for a file of this machine; that of another key does not exist."""
    from vec_pipeline.sources.folder import path_of

    return path_of(key)


def is_counted(source: Source) -> bool:
    """Whether what there is to do is counted before it is done."""
    return not source.is_stream and getattr(source, "is_counted", True)


def resume(source: Source, done: Container[str]) -> None:
    """Let a source that can begin later leave out what needs no work, before it is iterated over."""
    if begin := getattr(source, "resume", None):
        begin(done)


@functools.cache
def source_classes(modules: tuple[str, ...] = ()) -> list[type[Source]]:
    """The sources there are, in the order in which they are asked. Raises UserError for a module that cannot be had."""
    names = (info.name for info in pkgutil.iter_modules(__path__))
    own = sorted(names, key=lambda name: (name == LOCAL, name == LISTS, name))
    found: list[type[Source]] = []
    for name in (*modules, *(f"{__name__}.{each}" for each in own)):
        try:
            members = vars(importlib.import_module(name)).values()
        except Exception as error:  # whatever the module raises
            raise UserError(f"sources: {name} cannot be imported: {error}") from None
        classes = [each for each in members if inspect.isclass(each) and each.__module__ == name]
        if not (sources := [each for each in classes if hasattr(each, "accepts")]):
            raise UserError(f"sources: {name} defines no source: a class with `accepts`, see vec_pipeline/sources")
        found += sources  # type: ignore[arg-type]
    return found


def glob_finder(globs: Sequence[str]) -> Callable[[str, str], str]:
    """Return a function of a name and its path that returns the first glob that they match, or an empty text.

    A glob with a slash before its end is one of paths, where * stands for slashes too, and of their ends where it does
    not begin with / or *; any other is one of names. Case does not count.
    """
    patterns = []
    for each in globs:
        pattern = each.rstrip("/")
        is_of_path = "/" in pattern
        if is_of_path and not pattern.startswith(("/", "*")):
            pattern = f"*/{pattern}"
        patterns.append((each, is_of_path, re.compile(fnmatch.translate(pattern), re.IGNORECASE)))
    any_pattern = re.compile("|".join(pattern.pattern for _, _, pattern in patterns) or "(?!)", re.IGNORECASE)

    def find(name: str, path: str) -> str:
        if not any_pattern.match(name) and not any_pattern.match(path):  # quick, for most
            return ""
        return next((each for each, is_of_path, found in patterns if found.match(path if is_of_path else name)), "")

    return find


class Several:
    """Sources one after the other, as one; an image that two of them name comes once."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.columns = {name: kind for source in sources for name, kind in source.columns.items()}
        self.is_stream = any(source.is_stream for source in sources)
        self.is_counted = all(map(is_counted, sources))

    def __iter__(self) -> Iterator[Record]:
        from vec_pipeline.key_set import KeySet  # numpy, which `--help` does not wait for

        seen = KeySet()
        for source in self.sources:
            for record in source:
                if record.key not in seen:
                    seen.add(record.key)
                    yield record

    def __length_hint__(self) -> int:
        hints = [length_hint(source, UNKNOWN) for source in self.sources]
        return NotImplemented if UNKNOWN in hints else sum(hints)

    def resume(self, done: Container[str]) -> None:
        for source in self.sources:
            resume(source, done)

    @property
    def has_priority(self) -> bool:
        return any(getattr(source, "has_priority", False) for source in self.sources)

    @property
    def notes(self) -> list[str]:
        return [note for source in self.sources for note in source.notes]

    @property
    def failures(self) -> list[str]:
        return [failure for source in self.sources for failure in source.failures]
