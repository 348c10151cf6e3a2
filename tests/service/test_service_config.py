"""Settings: where they come from, which wins, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tercet.server import config
from tercet.server.config import ConfigError, load

FILE = """
port = 1001
max_rows = 7
dtype = "bfloat16"
memory = 0.5
[models.b]
source = "org/b"
revision = "v1"
dtype = "float16"
threads = 2
[models.c]
source = "org/c"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tercet.toml"
    path.write_text(FILE)
    return path


def models(settings: config.Settings) -> dict[str, config.ModelSettings]:
    return {model.name: model for model in settings.models}


def test_defaults_hold_where_nothing_is_given():
    settings = load({}, ["a=org/a"], environment={})
    assert (settings.host, settings.port, settings.metrics_port, settings.memory) == ("127.0.0.1", 50051, 9464, 0.9)
    assert settings.models == (config.ModelSettings(name="a", source="org/a"),)


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path):
    environment = {"TERCET_PORT": "1002", "TERCET_MAX_ROWS": "8"}
    settings = load({"port": 1003}, [], file, environment)
    assert settings.port == 1003
    assert [model.max_rows for model in settings.models] == [8, 8]
    assert load({"max_rows": 9}, [], file, environment).models[0].max_rows == 9
    assert load({}, [], file, environment).port == 1002
    assert load({}, [], file, {}).port == 1001
    assert load({}, [], file, {}).memory == 0.5


def test_a_models_own_table_wins_over_the_top_of_the_file_but_not_over_flags(file: Path):
    own = models(load({}, [], file, {}))
    assert (own["b"].dtype, own["c"].dtype) == ("float16", "bfloat16")
    assert (own["b"].revision, own["b"].threads) == ("v1", 2)
    assert {model.dtype for model in load({"dtype": "float32"}, [], file, {}).models} == {"float32"}


def test_precisions_have_short_names(file: Path):
    for name, canonical in {
        "fp32": "float32",
        "bf16": "bfloat16",
        "fp16": "float16",
        "tf32": "tf32",
        "fp8": "fp8",
    }.items():
        assert {model.dtype for model in load({"dtype": name}, [], file, {}).models} == {canonical}
        assert load({}, ["a=b"], environment={"TERCET_DTYPE": name}).models[0].dtype == canonical
    known = "auto, float32, tf32, bfloat16, float16, fp8, fp32, bf16, fp16"
    with pytest.raises(ConfigError, match=f"^dtype: 'int8' is not one of {known} \\(from --dtype\\)$"):
        load({"dtype": "int8"}, ["a=b"], environment={})


def test_arguments_add_models_and_replace_sources(file: Path):
    own = models(load({}, ["b=org/other", "a=org/a@main"], file, {}))
    assert sorted(own) == ["a", "b", "c"]
    assert (own["b"].source, own["b"].revision, own["b"].dtype) == ("org/other", None, "float16")
    assert (own["a"].source, own["a"].revision) == ("org/a", "main")


def test_the_environment_names_models_and_the_file(file: Path):
    settings = load({}, [], environment={"TERCET_MODELS": "x=org/x y=org/y", "TERCET_CONFIG": str(file)})
    assert [model.name for model in settings.models] == ["b", "c", "x", "y"]


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path):
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert load({}, [f"a={folder}"], environment={}).models[0].source == str(folder)


@pytest.mark.parametrize(
    ("argument", "base", "adapter"),
    [
        ("org/base+org/adapter", ("org/base", None), ("org/adapter", None)),
        ("org/base@v1+org/adapter@v2", ("org/base", "v1"), ("org/adapter", "v2")),
        ("org/base", ("org/base", None), (None, None)),
        ("HERE/a+b", ("HERE/a+b", None), (None, None)),
        ("HERE/a+b+org/adapter", ("HERE/a+b", None), ("org/adapter", None)),
        ("HERE/a+b+HERE/c+d", ("HERE/a+b", None), ("HERE/c+d", None)),
        ("HERE/plain+HERE/c+d", ("HERE/plain", None), ("HERE/c+d", None)),
        ("org/base@v1+HERE/c+d", ("org/base", "v1"), ("HERE/c+d", None)),
        ("HERE/home@me+org/adapter@v2", ("HERE/home@me", None), ("org/adapter", "v2")),
    ],
)
def test_an_adapter_follows_its_base_model(
    tmp_path: Path, argument: str, base: tuple[str, str | None], adapter: tuple[str | None, str | None]
):
    for folder in ("a+b", "c+d", "plain", "home@me"):
        (tmp_path / folder).mkdir()

    def here(text: str | None) -> str | None:
        return text and text.replace("HERE", str(tmp_path))

    model = load({}, [f"m={here(argument)}"], environment={}).models[0]
    assert (model.source, model.revision) == (here(base[0]), base[1])
    assert (model.adapter, model.adapter_revision) == (here(adapter[0]), adapter[1])


def test_an_adapter_and_a_permission_are_keys_of_a_model_too(tmp_path: Path):
    file = tmp_path / "tercet.toml"
    own = '[models.a]\nsource = "org/a"\nadapter = "org/x"\nadapter_revision = "v3"\nallow_pickle = true\n'
    file.write_text(own + '[models.b]\nsource = "org/b"')
    first, second = load({}, [], file, {}).models
    assert (first.adapter, first.adapter_revision, first.allow_pickle) == ("org/x", "v3", True)
    assert (second.adapter, second.adapter_revision, second.allow_pickle) == (None, None, False)
    assert all(model.allow_pickle for model in load({"allow_pickle": True}, [], file, {}).models)
    assert load({}, [], file, {"TERCET_ALLOW_PICKLE": "1"}).models[1].allow_pickle
    assert load({}, ["a=org/other"], file, {}).models[0].adapter is None


def test_a_source_too_long_for_a_path_may_be_a_hub_id():
    assert load({}, [f"a={'x' * 5000}@main"], environment={}).models[0].revision == "main"


def test_tercet_toml_is_read_where_the_server_starts(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    assert load({}, [], environment={}).port == 1001


def test_settings_are_frozen():
    settings = load({}, ["a=org/a"], environment={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "arguments", "environment", "message"),
    [
        ({"port": 65536}, ["a=b"], {}, "port: 65536 is above the most, 65535 (from --port)"),
        ({"metrics_port": -1}, ["a=b"], {}, "metrics_port: -1 is below the least, 0 (from --metrics-port)"),
        ({}, ["a=b"], {"TERCET_PORT": "http"}, "port: 'http' is not an integer (from TERCET_PORT)"),
        ({}, ["a=b"], {"TERCET_PORT": "1.5"}, "port: '1.5' is not an integer (from TERCET_PORT)"),
        ({}, ["a=b"], {"TERCET_MEMORY": "nan"}, "memory: 'nan' is not a number (from TERCET_MEMORY)"),
        ({"memory": 1.5}, ["a=b"], {}, "memory: 1.5 is above the most, 1 (from --memory)"),
        ({}, ["a=b"], {"TERCET_REFLECTION": "maybe"}, "reflection: 'maybe' is not true or false (from TERCET_REFL"),
        ({"layout": "dense"}, ["a=b"], {}, "layout: 'dense' is not one of auto, padded, packed (from --layout)"),
        ({"max_rows": 0}, ["a=b"], {}, "max_rows: 0 is below the least, 1 (from --max-rows)"),
        ({}, [], {}, "models: none given"),
        ({}, ["a"], {}, "models: 'a' is not NAME=SOURCE"),
        ({}, ["a="], {}, "models: 'a=' is not NAME=SOURCE"),
        ({}, ["a=b+"], {}, "models: 'a=b+' is not NAME=SOURCE or NAME=SOURCE+ADAPTER"),
        ({}, ["a=+b"], {}, "models: 'a=+b' is not NAME=SOURCE"),
        ({"allow_pickle": "maybe"}, ["a=b"], {}, "allow_pickle: 'maybe' is not true or false (from --allow-pickle)"),
        ({}, ["a=b", "a=c"], {}, "models: 'a' is given twice"),
        ({}, ["../a=b"], {}, "models: '../a' is not a name of 1 to 64 letters"),
        ({}, ["a" * 65 + "=b"], {}, "is not a name of 1 to 64 letters"),
        ({}, ["-a=b"], {}, "models: '-a' is not a name"),
        ({}, ["=b"], {}, "models: '' is not a name"),
    ],
)
def test_what_cannot_be_used_is_named(flags: dict, arguments: list[str], environment: dict, message: str):
    with pytest.raises(ConfigError) as error:
        load(flags, arguments, environment=environment)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "prot: no such setting (in {path})"),
        ("port = 1.0\n[models.a]\nsource='b'", "port: 1.0 is not an integer (in {path})"),
        ("port = true\n[models.a]\nsource='b'", "port: True is not an integer (in {path})"),
        ("memory = inf\n[models.a]\nsource='b'", "memory: inf is not a number (in {path})"),
        ("host = 7\n[models.a]\nsource='b'", "host: 7 is not text (in {path})"),
        ("[models.a]\nsorce = 'b'", "models.a.sorce: no such setting (in {path})"),
        ("[models.a]\nthreads = 0\nsource='b'", "models.a.threads: 0 is below the least, 1 (in {path})"),
        ("[models.a]\nthreads = 2", "models.a.source: not given"),
        ("models = 3", "models: 3 is not a table of tables"),
        ("port = ", "config: {path} is not TOML: "),
        ("port = " + "9" * 5000, "config: {path} is not TOML: "),
        ("port = 0x" + "f" * 5000, "config: {path} is not TOML: "),
        ("port = " + "[" * 100_000, "config: {path} is not TOML: "),
    ],
)
def test_what_a_file_may_not_say_is_named(text: str, message: str, tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load({}, [], path, {})
    assert message.format(path=path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config: can't read .*absent\.toml"):
        load({}, ["a=b"], tmp_path / "absent.toml", {})


@pytest.mark.parametrize("name", sorted(config.FLAG_RULES))
def test_every_setting_can_come_from_the_environment(name: str):
    rule, default = config.FLAG_RULES[name]
    value = (
        rule.choices[-1]
        if rule.choices
        else {bool: str(not default).lower(), str: "here"}.get(rule.kind, str(rule.low))
    )
    settings = load({}, ["a=b"], environment={f"TERCET_{name.upper()}": value})
    holder = settings if name in config.SERVER_RULES else settings.models[0]
    got = getattr(holder, name)
    assert type(got) is rule.kind
    assert got != default
    assert str(got).lower() == value or float(value) == got
