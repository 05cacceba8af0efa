"""Settings: where they come from, and what an invalid one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.manager.settings import EMBEDDED, load_settings


def test_flags_before_environment_before_file_before_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("poll_interval: 7\ntask_timeout: 70\nmax_concurrent_runners: 7\nlog_format: json\n")
    settings, warnings = load_settings(
        {"poll_interval": "9", "base_path": str(tmp_path)},
        environment={"AIR_EXECUTOR_POLL_INTERVAL": "8", "AIR_EXECUTOR_TASK_TIMEOUT": "80"},
    )
    assert (settings.poll_interval, settings.task_timeout, settings.max_concurrent_runners) == (9, 80, 7)
    assert (settings.log_format, settings.log_level, settings.kill_grace) == ("json", "INFO", 10)
    assert warnings == []


def test_the_existing_keys_with_their_whole_range(tmp_path: Path) -> None:
    for low_or_high in ((1, 60, 1), (60, 7200, 50)):
        poll, timeout, runners = low_or_high
        (tmp_path / "config.yaml").write_text(
            f"poll_interval: {poll}\ntask_timeout: {timeout}\nmax_concurrent_runners: {runners}\n"
            "base_path: elsewhere\nlog_level: debug\nlog_format: console\n"
        )
        settings, _ = load_settings({}, config=tmp_path / "config.yaml", environment={})
        assert (settings.poll_interval, settings.task_timeout, settings.max_concurrent_runners) == low_or_high
        assert (settings.base_path, settings.log_level) == ("elsewhere", "DEBUG")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("poll_interval: fast", "poll_interval = 'fast'"),
        ("poll_interval: 0", "poll_interval = 0"),
        ("task_timeout: -1", "task_timeout = -1"),
        ("max_concurrent_runners: 0", "max_concurrent_runners = 0"),
        ("max_concurrent_runners: 2.5", "max_concurrent_runners = 2.5"),
        ("log_level: LOUD", "log_level = 'LOUD'"),
        ("log_format: xml", "log_format = 'xml'"),
        ("base_path: ''", "base_path = ''"),
        ("keep_jobs: 0", "keep_jobs = 0"),
        ("keep_days: -1", "keep_days = -1"),
        ("keep_failed_days: .inf", "keep_failed_days = inf"),
        ("capacity: 8", "capacity = 8"),
        ("capacity: {gpu: 1}", "capacity = {'gpu': 1}"),
        ("capacity: {cpus: 0}", "capacity = {'cpus': 0}"),
        ("capacity: {gpus: -1}", "capacity = {'gpus': -1}"),
        ("capacity: {gpus: ['0 1']}", "'0 1' is no id of a graphics processor"),
        ("capacity: '{'", "must be JSON"),
        ("- a", "must be a mapping"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_an_invalid_value_is_named_with_its_source(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings({}, config=config, environment={})
    assert says in str(refused.value)
    assert str(config) in str(refused.value)


def test_addresses_are_a_list_or_a_text(tmp_path: Path) -> None:
    where = {"base_path": str(tmp_path)}
    settings, _ = load_settings(where, environment={"AIR_EXECUTOR_LISTEN": "127.0.0.1:1, ./x.sock"})
    assert settings.listen == ("127.0.0.1:1", "./x.sock")
    (tmp_path / "config.yaml").write_text("listen: [':2']\ntls_cert: c\ninsecure_plain_text: true\n")
    settings, _ = load_settings(where, environment={})
    assert (settings.listen, settings.tls_cert, settings.insecure_plain_text) == ((":2",), "c", True)
    settings, _ = load_settings({**where, "listen": ("h:3",)}, environment={"AIR_EXECUTOR_LISTEN": "h:4"})
    assert settings.listen == ("h:3",)
    assert load_settings({"base_path": str(tmp_path / "other")}, environment={})[0].listen == ()


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ('{"gpus": 2}', 2),
        ('{"gpus": "2"}', 2),
        ('{"gpus": []}', ()),
        ('{"gpus": [0, "GPU-5d5ba0d6-d33d"]}', ("0", "GPU-5d5ba0d6-d33d")),
        ('{"gpus": "0, 1"}', ("0", "1")),
        ("{}", None),
    ],
)
def test_the_capacity_is_a_mapping_or_json(tmp_path: Path, text: str, gpus: object) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"capacity: {text}")
    found, _ = load_settings({}, config=config, environment={})
    assert load_settings({"capacity": text}, environment={})[0].capacity == found.capacity
    assert load_settings({}, environment={"AIR_EXECUTOR_CAPACITY": text})[0].capacity == found.capacity
    assert found.capacity.gpus == gpus
    assert (found.capacity.cpus, found.capacity.memory) == (None, None)


def test_the_units_of_the_capacity(tmp_path: Path) -> None:
    found, _ = load_settings({"capacity": '{"cpus": "1500m", "memory": "2Gi"}'}, environment={})
    assert (found.capacity.cpus, found.capacity.memory) == (1.5, 2 * 2**30)


def test_defaults_of_embedded_managers_count_last(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("keep_days: 3\n")
    environment = {"AIR_EXECUTOR_KEEP_FAILED_DAYS": "5"}
    where = {"base_path": str(tmp_path)}
    settings, _ = load_settings(where, environment=environment, defaults=EMBEDDED)
    assert (settings.keep_jobs, settings.keep_days, settings.keep_failed_days) == (1000, 3, 5)
    settings, _ = load_settings({"base_path": str(tmp_path / "other")}, environment={})
    assert (settings.keep_jobs, settings.keep_days, settings.keep_failed_days) == (None, None, None)


def test_unknown_keys_warn(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("pol_interval: 1\n")
    assert "pol_interval" in load_settings({"base_path": str(tmp_path)}, environment={})[1][0]


def test_a_base_path_that_names_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration file is found, too."""
    monkeypatch.setenv("WHERE", str(tmp_path))
    (tmp_path / "config.yaml").write_text("poll_interval: 7\n")
    assert load_settings({"base_path": "$WHERE"}, environment={})[0].poll_interval == 7


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no configuration file"):
        load_settings({}, config=tmp_path / "nope.yaml", environment={})
