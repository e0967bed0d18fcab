"""Settings: where they come from, and what a wrong one says."""

import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from engine import ConfigurationError, Settings
from engine.settings import without_password


def test_settings_come_from_arguments_first_then_variables_then_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OUTLAST_LANES", "3")
    monkeypatch.setenv("OUTLAST_POOL_SIZE", "4")

    settings = Settings(lanes=5)

    assert (settings.lanes, settings.pool_size, settings.weight) == (5, 4, 1.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.5", 2.5),
        ("90", 90.0),
        ("PT5S", 5.0),
        ("00:00:07", 7.0),
        ("1h30m", 5400),
        ("250ms", 0.25),
    ],
)
def test_durations_in_variables_are_seconds_or_iso_or_as_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("OUTLAST_SUSPEND_AFTER", text)

    assert Settings().suspend_after == timedelta(seconds=seconds)


def test_groups_in_the_variable_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_GROUPS", "default, bulk,")

    assert Settings().groups == ("default", "bulk")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lanes", "0"),
        ("lanes", "many"),
        ("shards_per_group", "20000"),
        ("weight", "nan"),
        ("pool_size", "-1"),
        ("notifications", "perhaps"),
        ("poll_interval", "0"),
        ("poll_interval", "nan"),
        ("time_to_live", "soon"),
        ("suspend_after", "-1"),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"OUTLAST_{name.upper()}", value)

    with pytest.raises(ConfigurationError, match=rf"^{name} \(variable OUTLAST_{name.upper()}\): "):
        Settings()


def test_what_is_no_duration_is_told_how_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_RETENTION", "1 fortnight")

    with pytest.raises(ConfigurationError, match=r"write 30s, 5m, 2h, 1d or 1h30m, or never"):
        Settings()


def test_a_variable_that_is_nearly_a_settings_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUTLAST_RETENTION_FALED", "never")
    monkeypatch.setenv("OUTLAST_OF_SOMEBODY_ELSE", "1")

    Settings()
    Settings()

    told = [record.getMessage() for record in caplog.records]
    assert told == ["OUTLAST_RETENTION_FALED is no setting: did you mean OUTLAST_RETENTION_FAILED?"]


def test_every_wrong_setting_is_named_at_once() -> None:
    wrong: dict[str, Any] = {"lanes": 0, "weight": "heavy", "groups": (1,)}

    with pytest.raises(ConfigurationError) as caught:
        Settings(**wrong)

    said = str(caught.value)
    for name in ("OUTLAST_LANES", "OUTLAST_WEIGHT", "OUTLAST_GROUPS"):
        assert f"variable {name})" in said


def test_a_setting_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="lane: there is no such setting; remove it"):
        Settings(lane=3)


def test_a_time_to_live_of_less_than_three_heartbeats_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least three times heartbeat_interval"):
        Settings(heartbeat_interval=timedelta(seconds=4))


def test_no_groups_at_all_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_GROUPS", " , ")

    with pytest.raises(ConfigurationError, match="groups must name at least one shard group"):
        Settings()


def test_without_a_dsn_the_message_says_how_to_name_one_and_how_to_go_without() -> None:
    with pytest.raises(ConfigurationError, match=r"set OUTLAST_DSN .*postgresql://.*outlast dev"):
        Settings().database()


def test_settings_do_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        setattr(Settings(), "lanes", 3)  # noqa: B010 -- past the type checkers


def test_no_form_of_the_settings_shows_the_password() -> None:
    settings = Settings(dsn="postgresql://user:s3cret@host:5432/db")

    for shown in (repr(settings), str(settings), f"{settings}"):
        assert "s3cret" not in shown
        assert "user:***@host" in shown


def test_no_error_shows_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_DSN", "postgresql://user:s3cret@host:5432/db")
    monkeypatch.setenv("OUTLAST_LANES", "0")

    with pytest.raises(ConfigurationError) as caught:
        Settings()

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db?user=u&password=pw&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("postgresql://u:pw@[::1/db", "postgresql://u:***@[::1/db"),
        ("postgresql://u:p@w/?#@h:5432/db", "postgresql://u:***@h:5432/db"),
        (
            "postgresql://h/db?sslpassword=pw&PASSWORD=pw",
            "postgresql://h/db?sslpassword=***&PASSWORD=***",
        ),
        ("in 'postgresql://u:p w@h/db' is no x", "in 'postgresql://u:***@h/db' is no x"),
        ("", ""),
    ],
)
def test_a_dsn_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert without_password(dsn) == shown


def test_importing_the_settings_warns_of_nothing() -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", "import engine.settings"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
