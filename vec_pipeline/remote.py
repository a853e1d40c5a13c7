"""A model on a server instead of on this machine: the options and checks of the stages that can do with one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar
from urllib.parse import urlsplit

from vec_pipeline.engines import endpoint
from vec_pipeline.weights import ModelStage

URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d+)?(/[\w.~%/-]*)?")


@dataclass(frozen=True, kw_only=True)
class RemoteStage(ModelStage):
    """A stage whose model may be on a server: `engine: endpoint`, and `model` is the server's name of it.

    endpoint: the address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
    local_options: those that decide results, and that mean nothing to a server.
    """

    local_options: ClassVar[tuple[str, ...]] = ("revision",)

    engine: str = "auto"
    endpoint: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for options that do not go together."""
        super().__post_init__()
        for problem in self._problems():
            raise ValueError(problem)
        if self.is_remote:
            object.__setattr__(self, "device", "cpu")  # no GPU is needed where `device: cuda` is for all stages

    def _problems(self) -> Iterator[str]:
        if not self.is_remote:
            if self.endpoint:
                yield f"engine is {self.engine}, and `endpoint:` is for engine: endpoint: set that, or remove it"
            return
        if not self.endpoint:
            yield "engine: endpoint needs the address of a server, such as endpoint: http://127.0.0.1:8000/v1"
        if problem := problem_of(self.endpoint):
            yield f"endpoint: {problem}"
        if not self.model:
            yield "engine: endpoint needs the server's name of the model as `model:`"
        defaults = {each.name: each.default for each in fields(self)}
        for name in self.local_options:
            if getattr(self, name) != defaults[name]:
                default = str(defaults[name]).lower() if isinstance(defaults[name], bool) else defaults[name]
                yield (
                    f"{name}: is for a model on this machine, and the engine is endpoint: remove it, or --set "
                    f"{self.name}.{name}={default}"
                )

    @property
    def is_remote(self) -> bool:
        return self.engine == "endpoint"

    @cached_property
    def missing_gb(self) -> float:
        return 0.0 if self.is_remote else super().missing_gb

    def fetch(self) -> None:
        """Of a model on a server, raises UserError where the server does not answer or has no such model."""
        if self.is_remote:
            endpoint.check_model(self.endpoint, self.model)
        else:
            super().fetch()


def problem_of(url: str) -> str:
    """What is wrong with the address of a server, without what may be a password in it; empty for a good one."""
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")  # which raises for an empty part between dots, and one that is too long
    except ValueError:
        return "it is not an address such as http://127.0.0.1:8000/v1"
    if "@" in parts.netloc:
        return (
            "it holds a user or a password, which settings and messages would show: remove them, and put the token "
            f"into the environment variable {endpoint.TOKEN_VARIABLE}"
        )
    if parts.query or parts.fragment:
        return "it has a `?` or a `#`: give it without, such as http://127.0.0.1:8000/v1"
    return "" if has_port and URL.fullmatch(url) else "it is not an address such as http://127.0.0.1:8000/v1"
