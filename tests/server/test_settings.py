"""Settings: what overrides what, and which mistake is named how."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_later_wins(tmp_path: Path) -> None:
    first = write(tmp_path, "port: 1000\nmax_sessions: 3\nhost: 127.0.0.2\n")
    second = write(tmp_path, "port: 2000\nmax_sessions: 4\n", "b.yaml")
    environment = {"RETALK_PORT": "3000", "OTHER": "x", "RETALK_CLIPS": "/nowhere", "RETALK_ENGINE": ""}
    settings = load_settings([first, second], {"engine": None, "port": 4000}, environment)
    assert settings.port == 4000
    assert settings.max_sessions == 4
    assert settings.host == "127.0.0.2"
    assert settings.engine == "talkin"
    assert load_settings([first], environment=environment).port == 3000


def test_the_default_configuration_says_the_defaults(repository: Path) -> None:
    assert load_settings([repository / "configs" / "default.yaml"], environment={}) == Settings()


def test_every_key_is_in_the_default_configuration(repository: Path) -> None:
    text = (repository / "configs" / "default.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert [
        key for key in Settings.model_fields if not any(line.startswith(f"{key}:") for line in lines)
    ] == []


def test_every_key_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 1\n", r"a\.yaml: unknown key 'prot'; the keys are: .*port"),
        ("port: 1\nport: 2\n", r"a\.yaml: duplicate key 'port' in line 2"),
        ("port: 70000\n", r"a\.yaml: port: .*65535"),
        ("port: [1]\n", r"a\.yaml: port: "),
        ("- port\n", r"a\.yaml: must be a mapping of keys to values, not a list"),
        ("port: {\n", r"a\.yaml: .*line"),
        ("ice_servers: [{urls: 'http://x'}]\n", r"a\.yaml: ice_servers\.0\.urls: .*stun"),
        ("ice_servers: [{urls: 'stun:x', urls: 'stun:y'}]\n", r"a\.yaml: duplicate key 'urls'"),
        ("allowed_origins: ['app.example']\n", r"a\.yaml: allowed_origins: .*is not an origin"),
        ("log_level: loud\n", r"a\.yaml: log_level: "),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        load_settings([write(tmp_path, text)], environment={})
    assert "\n" not in str(caught.value)


def test_a_mistake_elsewhere_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="environment: unknown key 'prot'"):
        load_settings(environment={"RETALK_PROT": "1"})
    with pytest.raises(SettingsError, match="environment: port: "):
        load_settings(environment={"RETALK_PORT": "many"})
    with pytest.raises(SettingsError, match="settings: port: "):
        load_settings(overrides={"port": -1}, environment={})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings([tmp_path / "none.yaml"], environment={})
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings([tmp_path / "bytes.yaml"], environment={})


def test_structured_variables_are_yaml() -> None:
    environment = {"RETALK_ICE_SERVERS": '[{"urls": "stun:stun.example:3478"}]'}
    settings = load_settings(environment=environment)
    assert settings.ice_servers[0].urls == "stun:stun.example:3478"


def test_secrets_do_not_show() -> None:
    settings = load_settings(environment={"RETALK_SERVER_KEY": "open sesame, and mind the step"})
    assert settings.server_key is not None
    assert settings.server_key.get_secret_value() == "open sesame, and mind the step"
    assert "sesame" not in repr(settings)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings([write(tmp_path, "# nothing\n")], environment={}) == Settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("presenters_dir: gone", "presenters_dir: gone is no folder"),
        ("min_latency_budget_ms: 2500", "min_latency_budget_ms is 2500, more than max_latency_budget_ms"),
        ("min_latency_budget_ms: 500", "latency_budget_ms is 400; what sessions may ask for is 500 to 2000"),
        ("server_key: secret", "server_key has fewer than 16 characters"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_at_start(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told) as refused:
        load_settings([write(tmp_path, text)], environment={})
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_later_source_may_mend_what_an_earlier_one_set(tmp_path: Path) -> None:
    path = write(tmp_path, "min_latency_budget_ms: 2500")
    mended = {"max_latency_budget_ms": 4000, "latency_budget_ms": 3000}
    assert load_settings([path], mended, {}).min_latency_budget_ms == 2500
