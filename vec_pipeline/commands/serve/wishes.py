"""What a request may ask of the configured stages: details, languages, and some of them alone."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeGuard, get_args

from vec_pipeline.record import Stage
from vec_pipeline.stages.describe import MAX_NEW_TOKENS, Describe
from vec_pipeline.stages.translate import Translate

Detail = Literal["brief", "normal", "full"]


def has_details(stage: Stage) -> TypeGuard[Describe]:
    """Whether it can be asked for more or less: not with a question or a length that somebody has set."""
    return isinstance(stage, Describe) and not stage.prompt and stage.max_new_tokens == MAX_NEW_TOKENS[stage.detail]


def ways_of(stages: Sequence[Stage]) -> dict[str, list[Stage]]:
    """The stages for each level of detail; those of the configuration where there is no choice."""
    if not any(has_details(stage) for stage in stages):
        return {"normal": list(stages)}

    def with_detail(stage: Stage, detail: Detail) -> Stage:
        return replace(stage, detail=detail, max_new_tokens="auto") if has_details(stage) else stage

    return {detail: [with_detail(stage, detail) for stage in stages] for detail in get_args(Detail)}


def why_no_details(stages: Sequence[Stage]) -> str:
    """Why there is no choice of details, as a part of a sentence about the configuration."""
    if describe := next((stage for stage in stages if isinstance(stage, Describe)), None):
        return f"sets {describe.name}.{'prompt' if describe.prompt else 'max_new_tokens'}"
    return "has no stage that describes"


def own_language(stages: Sequence[Stage]) -> str:
    """What the models answer in."""
    return next((str(stage.language) for stage in stages if hasattr(stage, "language")), "en")


def languages_of(stages: Sequence[Stage]) -> dict[str, frozenset[str]]:
    """The languages that there are answers in, and the stages for each alone: those that translate into it, and those
    that read translations."""
    of_language: dict[str, frozenset[str]] = {own_language(stages): frozenset()}
    written: dict[str, str] = {}  # column -> its language
    for stage in stages:
        language = (
            stage.to
            if isinstance(stage, Translate)
            else next((written[name] for name in stage.input_names if name in written), "")
        )
        if language:
            of_language[language] = of_language.get(language, frozenset()) | {stage.name}
            written |= dict.fromkeys(stage.outputs.values(), language)
    return of_language


def missing_inputs(stages: Sequence[Stage], without: Collection[str]) -> Iterator[str]:
    """Say which stages cannot run without others, and what they lack.

    without: names of the stages that are not to run. What is read only where it is there is not missing, but for what
    a prompt names.
    """
    makers = {name: stage.name for stage in stages for name in stage.outputs.values()}
    for stage in stages:
        needed = [stage.read.get(own, own) for own in (*stage.reads, *stage.placeholders)]
        for name in dict.fromkeys(needed if stage.name not in without else ()):
            if makers.get(name) in without:
                yield f"{stage.name} needs {name}, which {makers[name]} writes: add {makers[name]}"
