"""The server's settings: configuration files, then the environment, then the command line; later wins.

Every field is documented here, and configs/*.yaml show them; an unknown or duplicate key is an error that
names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from server.auth import is_loopback
from server.errors import first_problem

ENV_PREFIX = "RETALK_"
LEAST_KEY = 16


class SettingsError(ValueError):
    """A configuration file, an environment variable or an option is wrong; the message names it."""


class IceServer(BaseModel):
    """A STUN or TURN server that both sides of a connection may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: str = Field(description="stun:host:port, turn:host:port?transport=udp or turns:...")
    username: str | None = Field(None, description="TURN user name")
    credential: str | None = Field(None, description="TURN password")

    @field_validator("urls")
    @classmethod
    def _known_scheme(cls, urls: str) -> str:
        if urls.split(":", 1)[0] not in {"stun", "turn", "turns"}:
            raise ValueError("must begin with stun:, turn: or turns:")
        return urls


class Settings(BaseSettings):
    """Everything an operator can choose. Immutable once read."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all: needs server_key")
    port: int = Field(8080, ge=0, le=65535, description="TCP port for everything but media; 0 picks one")
    server_key: SecretStr | None = Field(
        None, description="secret that creating sessions asks for; without one only this machine is served"
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="origins of pages, other than the server's own, that may use it"
    )

    engine: str = Field("talkin", description="the engine to load")
    device: str = Field("auto", description="auto (CUDA where there is one), cpu or cuda[:N]")

    engine_processes: int | None = Field(
        None,
        ge=0,
        le=256,
        description="processes that the engine runs in, 0: inside the server; not given: one for every core "
        "for talkin, 0 for videoretalking, which takes all sessions' windows together",
    )

    look_ahead_ms: int | None = Field(
        None,
        description="how much of the voice beyond a frame the engine waits for: talkin 120 (the default) or "
        "80, a little less exact; not given: the engine's own",
    )

    max_sessions: int = Field(
        16, ge=1, le=1024, description="sessions at once, where measured costs do not allow fewer"
    )
    max_viewers: int = Field(8, ge=1, le=1024, description="peers that may watch one session")
    latency_budget_ms: int = Field(
        400, ge=100, le=5000, description="added latency that a session gets where it asks for none"
    )
    min_latency_budget_ms: int = Field(150, ge=50, le=5000, description="the least a session may ask for")
    max_latency_budget_ms: int = Field(2000, ge=100, le=10000, description="the most a session may ask for")
    max_hold_ms: int = Field(
        5000, ge=600, le=10000, description="the longest that an aligned session may hold its frames"
    )
    idle_timeout_s: float = Field(
        30.0, gt=0, description="a session that nobody is connected to ends after this long"
    )
    drain_timeout_s: float = Field(
        20.0, ge=0, description="how long SIGTERM lets running sessions finish before it ends them"
    )

    presenters_dir: Path | None = Field(
        None, description="folder of videos and pictures that sessions may name as their source"
    )
    allow_unmarked: bool = Field(
        False, description="let sessions turn off the mark that says a picture is synthetic; logged"
    )

    ice_servers: tuple[IceServer, ...] = Field(
        (), description="STUN and TURN servers; none are asked unless listed here"
    )
    allow_private_candidates: bool = Field(
        True, description="let peers on private networks and this machine connect; false on a public server"
    )
    handshake_timeout_s: float = Field(15.0, gt=0, description="a peer must connect within this of its offer")
    silence_timeout_s: float = Field(5.0, gt=0, description="a peer not heard for this long has vanished")

    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _plain_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if "://" not in origin or origin.endswith("/"):
                raise ValueError(f"{origin!r} is not an origin; one looks like https://app.example")
        return origins

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine may be served, there being no key to tell others apart."""
        return self.server_key is None

    @property
    def listen_host(self) -> str:
        """The address really listened on: loopback, whatever `host` says, where there is no key."""
        return self.host if not self.loopback_only or is_loopback(self.host) else "127.0.0.1"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # load_settings merges the sources itself, so that an error can say which one it came from.
        return (init_settings,)


def load_settings(
    files: Sequence[Path] = (),
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read settings: files in order, then RETALK_* of the environment, then overrides (the command line).

    overrides: by field name; None values are ignored. environment: os.environ where not given.
    Raises SettingsError, one line, naming the file or variable and the key.
    """
    merged: dict[str, Any] = {}
    for path in files:
        merged.update(_checked(_read_yaml(path), str(path)))
    merged.update(
        _checked(_from_environment(os.environ if environment is None else environment), "environment")
    )
    merged.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return _consistent(Settings(**_checked(merged, "settings")))


def _consistent(settings: Settings) -> Settings:
    """What no single source can be blamed for, and what only a server that is to run must have."""
    least, most = settings.min_latency_budget_ms, settings.max_latency_budget_ms
    if least > most:
        raise SettingsError(
            f"settings: min_latency_budget_ms is {least}, more than max_latency_budget_ms, which is {most}"
        )
    if not least <= settings.latency_budget_ms <= most:
        raise SettingsError(
            f"settings: latency_budget_ms is {settings.latency_budget_ms}; what sessions may ask for is "
            f"{least} to {most} (min_latency_budget_ms, max_latency_budget_ms)"
        )
    folder = settings.presenters_dir
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"settings: presenters_dir: {folder} is no folder; create it, or name another")
    key = settings.server_key
    if key is not None and len(key.get_secret_value()) < LEAST_KEY:
        raise SettingsError(
            f"settings: server_key has fewer than {LEAST_KEY} characters and can be guessed; "
            "`openssl rand -hex 16` makes a good one"
        )
    return settings


def _checked(values: dict[str, Any], origin: str) -> dict[str, Any]:
    try:
        Settings(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in problem["loc"])
            raise SettingsError(f"{origin}: unknown key {key!r}; the keys are: {_key_list()}") from None
        raise SettingsError(f"{origin}: {first_problem(list(error.errors()))}") from None
    return values


def _key_list() -> str:
    return ", ".join(sorted(Settings.model_fields))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENV_PREFIX) or name in RESERVED or text == "":
            continue
        key = name.removeprefix(ENV_PREFIX).lower()
        values[key] = _yaml(text, f"environment variable {name}") if key in STRUCTURED else text
    return values


STRUCTURED = frozenset({"ice_servers", "allowed_origins"})
"""Keys whose environment variables are written as YAML (or JSON)."""

RESERVED = frozenset(
    {"RETALK_CLIPS", "RETALK_DEBUG", "RETALK_HOME", "RETALK_CACHE", "RETALK_MODELS", "RETALK_MODELS_MIRROR"}
)
"""Variables with our prefix that are not settings of the server."""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text") from None
    values = _yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must be a mapping of keys to values, not a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where the standard loader keeps the last one silently."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        seen.add(key)
    return dict(loader.construct_mapping(node, deep=True))


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{origin}: {error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{origin}: is not YAML: {str(error).splitlines()[0]}") from None
