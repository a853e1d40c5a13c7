"""text -> description, categories, keywords, image_text or fields of any schema, and llama_extracted, by a Llama."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from vec_pipeline import device, weights
from vec_pipeline.device import Device
from vec_pipeline.engines import Answer, Message, PromptSize, grammar
from vec_pipeline.engines.endpoint import JsonEndpoint
from vec_pipeline.prompts import PROMPTS
from vec_pipeline.record import Interrupted, Need, Stage, UserError, Values, Worker
from vec_pipeline.remote import RemoteStage

KV_GB_PER_TOKEN = 131_072 / 1e9  # Llama 3.1 8B in f16
SIZE_GB = 4.9  # of its weights as Q4_K_M; smaller models need less for a token too
ROW_TOKENS = 384  # a usual description and its answer
MOST_ROWS_ON_GPU, MOST_ROWS_ON_CPU = 64, 16  # answers at once; beyond that they hardly come faster
MOST_ROWS = 255  # that llama.cpp decodes at once
FEW_ROWS = 8  # that memory should hold at least, and up to which a shared context is faster on a CPU too
RESERVE_GB = 1.0  # free memory that is left to llama.cpp's buffers and to the other models
CONTEXT_STEP_TOKENS = 256  # llama.cpp rounds contexts up to it
PART = re.compile(r"-\d{5}(-of-(\d{5})\.gguf)$")  # the end of a file's name, where a model has several
FENCE = re.compile(r"\s*```\w*\s*(.*?)```\s*", re.DOTALL)  # of Markdown, around JSON of a server without a grammar
MAX_LENGTH, MAX_ITEMS = 400, 10  # of the texts and the lists of a schema that says nothing
LONGEST_ANSWER_BYTES = 100_000  # that a schema may allow
COLUMN_OF = {"string": "text", "enum": "text", "integer": "number", "number": "number"}  # other values are json
RESERVED = ("error", "llama_extracted")  # what every result may hold
NOT_IN_A_NAME = ("Cc", "Cs", "Zl", "Zp")  # kinds of characters: controls, halves of characters, line breaks


class Schema(dict[str, Any]):
    """A JSON schema as an option of a stage, which is a key. The order of its properties counts: answers have it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and json.dumps(self) == json.dumps(other)


@dataclass(frozen=True, kw_only=True)
class Structure(RemoteStage):
    """Turns a text into one JSON object, under a grammar that bounds every string and list.

    texts: what the model is told, each a paragraph.
    schema: of the object, instead of the one that this stage has. Its properties are the columns: text for a string or
        an enum, number, and json for all else. `prompt` has to say what they mean; `language` and `categories` do not
        count then.
    model: a GGUF file, or a hub repository with `file` naming one in it.
    engine: auto (llama.cpp), or endpoint: a server has the model, see docs/endpoints.md.
    max_tokens: of one answer; 0 for as many as the grammar admits and `context_tokens` holds.
    batch_size: answers decoded at once, or requests in flight; a finished one is replaced by the next.
    context_tokens: what prompt, description and answer of a row may take together.
    threads: 0 for as many as make it faster.
    """

    writes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("description", "categories", "keywords", "image_text", "llama_extracted"), "text"
    )
    speed_options: ClassVar[tuple[str, ...]] = (*RemoteStage.speed_options, "engine", "context_tokens", "threads")
    local_options: ClassVar[tuple[str, ...]] = (*RemoteStage.local_options, "file")
    call_options: ClassVar[tuple[str, ...]] = ("texts", "prompt", "schema", "language", "categories", "max_tokens")
    newer_options: ClassVar[tuple[str, ...]] = ("texts", "schema")
    worker: ClassVar[Worker] = "child"
    refills: ClassVar[bool] = True

    file: str = ""
    texts: tuple[str, ...] = ("text",)
    prompt: str = ""  # empty: the one of the language; `{category}` stands for what is said of the category
    schema: Mapping[str, Any] = Schema()
    language: Literal["en", "ru"] = "en"
    categories: tuple[str, ...] = ()
    max_tokens: int = 0
    context_tokens: int = 2048
    threads: int = 0
    device: Device = "auto"
    engine: Literal["auto", "endpoint"] = "auto"
    batch_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_remote and self.batch_size != "auto" and self.batch_size > MOST_ROWS:
            raise ValueError(f"batch_size is {self.batch_size}, and llama.cpp decodes at most {MOST_ROWS} at once")
        for problem in problems_of(self.categories):
            raise ValueError(f"categories: {problem}")
        if not self.texts or len({*self.texts}) < len(self.texts):
            raise ValueError("texts: name each column to read once, such as [text]")
        object.__setattr__(self, "reads", self.texts)
        object.__setattr__(self, "schema", Schema(self.schema))  # of a configuration, it is a dict
        if self.schema:
            self._take_schema()

    def _take_schema(self) -> None:
        """Let the columns be those of the schema. Raises ValueError where that cannot be."""
        try:
            schema = usable(self.schema)
        except ValueError as error:
            raise ValueError(f"schema: {error}") from None
        if not self.prompt:
            raise ValueError("schema: the model is told the prompt alone: set `prompt:` to what each property means")
        columns = {name: COLUMN_OF.get(grammar.kind_of(each), "json") for name, each in schema["properties"].items()}
        for name, value in {"schema": schema, "language": "en", "categories": ()}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "writes", {**columns, "llama_extracted": "text"})

    @cached_property
    def loaded_as(self) -> Stage:
        return self if self.is_remote else super().loaded_as  # a server is told the schema, with its categories

    @property
    def patterns(self) -> tuple[str, ...]:
        """Raises UserError where nothing says which file of a repository is meant."""
        if not self.file and weights.local_path(self.model) is None:
            raise UserError(f"{self.name}: {self.model} is a hub repository: set {self.name}.file to a GGUF file in it")
        return (PART.sub(r"-?????\1", self.file),)

    def path(self, option: str = "model", *, is_offline: bool = True) -> Path:
        folder = weights.fetch(self.model, self.patterns, revision=self.revision, is_offline=is_offline)
        return folder / self.file if self.file else folder

    def check(self, path: Path) -> None:
        from vec_pipeline.engines.llama_process import examine

        super().check(path)
        if path.is_dir():
            names = sorted(file.name for file in path.glob("*.gguf"))
            choose = f"is a folder: set {self.name}.file to one of {', '.join(names[:9])}"
            fix = choose if names else "has no GGUF file: give the GGUF file of an instruct model"
            raise UserError(f"{self.name}: {path} {fix}")
        try:
            size = examine(path, self._conversation(""), grammar.to_gbnf(self.answer_schema))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{self.name}: {error}") from None
        if problem := self._size_problem(path, size):
            raise UserError(f"{self.name}: {problem}")

    def _size_problem(self, path: Path, size: PromptSize) -> str:
        """Why prompt, description and answer do not fit, and what to set; empty where they do."""
        needed, trained = size.prompt_tokens + ROW_TOKENS, size.trained_tokens
        prompt = f"the prompt takes {size.prompt_tokens:,} tokens and a description with its answer about {ROW_TOKENS}"
        shorter = "shorten the prompt" if self.schema else "shorten the prompt or the list of categories"
        if 0 < trained < needed:
            return f"{prompt}, but {path} was trained on {trained:,}: {shorter}, or use a model trained on more"
        if needed > sum(self._context()):
            enough = -(-needed // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
            option = f"--set {self.name}.context_tokens={min(enough, trained or enough)}"
            return f"{prompt}, but context_tokens is {self.context_tokens:,}: {option}, or {shorter}"
        if 0 < trained < self.context_tokens:
            return (
                f"context_tokens is {self.context_tokens:,}, and {path} was trained on {trained:,}: "
                f"--set {self.name}.context_tokens={trained}"
            )
        return ""

    def weights_gb(self) -> float:
        """Size of the weights, of all files where they are several; 0 if it is not known yet."""
        name = self.file or self.model
        if not (part := PART.search(name)):
            return weights.size_gb(self.model, self.file, self.revision)
        names = [f"{name[: part.start()]}-{number:05}{part[1]}" for number in range(1, int(part[2]) + 1)]
        files = [(self.model, each) if self.file else (each, "") for each in names]
        return sum(weights.size_gb(model, file, self.revision) for model, file in files)

    def need(self) -> Need:
        if self.is_remote:
            return Need()
        gb = self.weights_gb()
        gb_per_token = KV_GB_PER_TOKEN * min(1.0, gb / SIZE_GB) ** 0.5  # which grows with the model's width
        shared_tokens, tokens_per_slot = self._context()
        gb += (shared_tokens + FEW_ROWS * tokens_per_slot) * gb_per_token
        most = self._most_rows() if self.batch_size == "auto" else self.batch_size
        rows_gb = max(0, most - FEW_ROWS) * tokens_per_slot * gb_per_token
        is_apart = self._on_gpu() and device.resolve(self.device) == "cuda"  # from the host's memory
        return Need(gpu_gb=gb, rows_gb=rows_gb) if is_apart else Need(host_gb=gb, rows_gb=rows_gb)

    def identity(self) -> str:
        return f"{self.system_prompt()} {json.dumps(self.answer_schema, ensure_ascii=False)}"

    def _on_gpu(self) -> bool:
        """Whether the model goes to the GPU. Raises UserError where it should and llama.cpp was built without."""
        kind = device.resolve(self.device)
        if kind == "cpu":
            return False
        from vec_pipeline.engines.llama_process import gpu_problem

        problem = gpu_problem()
        if problem and self.device != "auto" and (device.has_mps() if kind == "mps" else device.has_gpu()):
            raise UserError(f"{self.name}: llama.cpp {problem}: run make llama, or --set {self.name}.device=cpu")
        return not problem

    def load(self) -> Any:
        if self.is_remote:
            return JsonEndpoint(self.endpoint, self.model, self.answer_schema)
        from vec_pipeline.engines.llama_process import LlamaProcess

        shared_tokens, tokens_per_slot = self._context()
        return LlamaProcess(
            self.path(),
            context_tokens=shared_tokens,
            tokens_per_slot=tokens_per_slot,
            gpu_layers=-1 if self._on_gpu() else 0,
            threads=self.threads,
        )

    def auto_batch_size(self, model: Any, reserved_gb: float) -> int:
        """As many answers at once as are still faster, and as fit into free memory beside what the model holds."""
        if self.is_remote:
            return super().auto_batch_size(model, reserved_gb)
        on_gpu = self._on_gpu()
        free_gb = device.gpu_free_gb() if on_gpu and device.has_gpu() else device.host_free_gb()
        free_tokens = ((free_gb or 0.0) - RESERVE_GB - reserved_gb) * 1e9 / model.kv_bytes_per_token
        shared_tokens, tokens_per_slot = self._context()
        fitting = int((free_tokens - shared_tokens) / tokens_per_slot)
        return max(1, int(model.slots), min(self._most_rows(), fitting))

    def _most_rows(self) -> int:
        return MOST_ROWS_ON_GPU if self._on_gpu() else MOST_ROWS_ON_CPU

    def _context(self) -> tuple[int, int]:
        """Tokens that all rows share, and tokens for each.

        Where they share, the prompt's beginning is in memory once, but each row's attention passes over the tokens of
        all: many rows on a CPU are faster apart.
        """
        are_few = self.batch_size != "auto" and self.batch_size <= FEW_ROWS
        return (self.context_tokens, ROW_TOKENS) if are_few or self._on_gpu() else (0, self.context_tokens)

    def run(self, model: Any, rows: list[Values], at_once: int) -> list[Values]:
        """A blank text is not asked about: a language model would invent a description."""
        schema = self.answer_schema
        conversations = [self._conversation(text) for row in rows if (text := self._text(row))]
        max_tokens = self.max_tokens or grammar.max_bytes(schema)
        try:
            asked = model.generate(conversations, grammar.to_gbnf(schema), max_tokens, at_once) if conversations else []
        except Interrupted as error:
            raise Interrupted(str(error), self._results(rows, error.results)) from None
        return self._results(rows, asked)

    def _results(self, rows: Sequence[Values], answers: Sequence[Any]) -> list[Any]:
        """The columns of each row; None where its answer is."""
        columns = iter([answer and self._columns(answer) for answer in answers])
        blank = {name: "" if kind == "text" else None for name, kind in self.writes.items()}
        return [next(columns) if self._text(row) else dict(blank) for row in rows]

    def _text(self, row: Values) -> str:
        """What the model is told of a row; empty where its texts are blank."""
        return "\n\n".join(text for name in self.texts if (text := str(row[name])).strip())

    def _columns(self, answer: Answer) -> Values:
        if answer.error:
            return {"error": answer.error}
        if not answer.is_complete:
            why = f"the JSON ends after {answer.tokens} tokens"
            if not answer.tokens:
                why = f"prompt and text take all of context_tokens ({self.context_tokens:,})"
            return {"llama_extracted": answer.text, "error": f"CutAnswer: {why}"}
        if self.is_remote and not answer.text.strip():
            return {"llama_extracted": answer.text, "error": "EmptyAnswer: the server's answer holds no text"}
        schema = self.answer_schema
        try:
            extracted = grammar.parse(fitted_json(answer.text, schema) if self.is_remote else answer.text, schema)
        except ValueError as error:
            return {"llama_extracted": answer.text, "error": f"ValueError: {error}"}
        if self.schema:
            return {**extracted, "llama_extracted": answer.text}
        return {
            "description": extracted["description"],
            "categories": extracted["category"],
            "keywords": ", ".join(distinct(extracted["keywords"])),
            "image_text": extracted["image_text"],
            "llama_extracted": answer.text,
        }

    def _conversation(self, text: str) -> list[Message]:
        return [{"role": "system", "content": self.system_prompt()}, {"role": "user", "content": text}]

    def system_prompt(self) -> str:
        if self.schema:
            return self.prompt
        prompts = PROMPTS[self.language]
        one = prompts.one_category.replace("{categories}", ", ".join(self.categories))
        category = one if self.categories else prompts.any_category
        return (self.prompt or prompts.structure).replace("{category}", category)

    @cached_property
    def answer_schema(self) -> Mapping[str, Any]:
        """The JSON schema of an answer. Its bounds keep the longest answer within a few thousand tokens."""
        if self.schema:
            return self.schema
        category = {"enum": list(self.categories)} if self.categories else {"type": "string", "maxLength": 40}
        keyword = {"type": "string", "minLength": 1, "maxLength": 40}
        return {
            "type": "object",
            "properties": {
                "description": {"type": "string", "maxLength": 400},
                "category": category,
                "keywords": {"type": "array", "items": keyword, "maxItems": 10},
                "image_text": {"type": "string", "maxLength": 400},
            },
        }


def usable(schema: Mapping[str, Any]) -> Schema:
    """A schema of the configuration, with the bounds that it lacks. Raises ValueError where its answers are no row."""
    found = Schema(grammar.bounded(schema, MAX_LENGTH, MAX_ITEMS))
    if not found.get("properties"):
        raise ValueError("$: an answer is an object with properties: write {type: object, properties: ...}")
    if (longest := grammar.max_bytes(found)) > LONGEST_ANSWER_BYTES:
        most = f"at most {LONGEST_ANSWER_BYTES:,} are possible"
        raise ValueError(f"$: the longest answer has {longest:,} bytes, and {most}: lower maxLength and maxItems")
    if taken := [name for name in RESERVED if name in found["properties"]]:
        raise ValueError(f"$.{taken[0]}: every row may have a value of that name: rename the property")
    try:
        hash(found)
    except TypeError as error:  # a date, which YAML knows, in what describes a property
        raise ValueError(f"$: {error}: put it into quotes") from None
    return found


def fitted_json(text: str, schema: Mapping[str, Any]) -> str:
    """A server's answer as our grammar has it, as far as that changes no meaning. Raises ValueError for no JSON."""
    fenced = FENCE.fullmatch(text)
    try:
        return json.dumps(fitted(json.loads(fenced[1] if fenced else text), schema))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    """The value with its keys in order, and strings and lists cut to their bounds; the rest as it is."""
    if isinstance(value, dict) and value.keys() == schema.get("properties", {}).keys():
        return {name: fitted(value[name], each) for name, each in schema["properties"].items()}
    if isinstance(value, list) and "items" in schema:
        return [fitted(each, schema["items"]) for each in value if each != ""][: schema["maxItems"]]
    if isinstance(value, str) and "maxLength" in schema:
        return value[: schema["maxLength"]]
    return value


def distinct(keywords: list[str]) -> list[str]:
    """Keywords without duplicates (letter case aside), without commas, which separate them, and without blanks."""
    kept: dict[str, str] = {}
    for keyword in keywords:
        if cleaned := " ".join(keyword.replace(",", " ").split()):
            kept.setdefault(cleaned.casefold(), cleaned)
    return list(kept.values())


def problems_of(categories: Sequence[str]) -> Iterator[str]:
    """What is wrong with a list of categories, as each is to be a value of a column."""
    seen: set[str] = set()
    for category in categories:
        name = category.strip()
        if not name:
            yield f"{category!r} is blank: delete it"
        if any(unicodedata.category(letter) in NOT_IN_A_NAME for letter in name):
            yield f"{category!r} holds a control character or a line break: remove it"
        if name in seen:
            yield f"{category!r} is listed twice: delete one"
        seen.add(name)
