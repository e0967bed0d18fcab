"""What a cron class may look like, and what is refused, with the fix."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from engine import ConfigurationError, Cron, Overlap, Runner, Settings, Workflow, WorkflowCron
from engine.cluster.timetable import Rules


class Valid(Cron):
    schedule = "30 2 * * MON-FRI"
    timezone = "Europe/Berlin"
    overlap = Overlap.BUFFER_ONE
    catch_up = timedelta(hours=2)
    skip_if_older_than = timedelta(minutes=30)

    async def run(self, at: datetime) -> None:
        """Nothing."""


class Report(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


def define(base: type = Cron, **attributes: object) -> type[Any]:
    return type("Nightly", (base,), {"schedule": "0 2 * * *", **attributes})


def register(*crons: Any) -> Runner:
    return Runner(Settings(dsn="x")).register(*crons)


def test_its_attributes_are_its_rules() -> None:
    rules = Rules.of(Valid)

    assert (rules.instants.schedule, rules.instants.timezone) == (
        "30 2 * * MON-FRI",
        "Europe/Berlin",
    )
    assert rules.overlap is Overlap.BUFFER_ONE
    assert (rules.catch_up, rules.skip_if_older_than) == (timedelta(hours=2), timedelta(minutes=30))


def test_it_is_named_as_its_class_unless_it_says_otherwise() -> None:
    assert define().name == "Nightly"
    assert define(name="every-night").name == "every-night"


def test_six_fields_are_a_schedule_too() -> None:
    assert define(schedule="*/5 * * * * *").schedule == "*/5 * * * * *"


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"schedule": "0 2 * *"}, r"schedule of cron Nightly .* write five fields"),
        ({"schedule": "0 25 * * *"}, r"schedule of cron Nightly .*Bad hour"),
        ({"schedule": 5}, r"schedule of cron Nightly is 5"),
        ({"timezone": "Berlin"}, r"timezone of cron Nightly .*such as 'Europe/Berlin'"),
        ({"overlap": "skip"}, r"overlap of cron Nightly is 'skip'; use one of Overlap\.SKIP"),
        ({"catch_up": 60}, r"catch_up of cron Nightly is 60; use a timedelta"),
        (
            {"catch_up": timedelta(-1)},
            r"catch_up of cron Nightly .* timedelta of 0 seconds or more",
        ),
        ({"skip_if_older_than": 5}, r"skip_if_older_than of cron Nightly is 5; use a timedelta"),
        ({"skip_if_older_than": timedelta(0)}, r"skip_if_older_than of .* of 1 seconds or more"),
        ({"name": "every night"}, r"cannot be named 'every night'"),
        ({"schedule": lambda: "x"}, r"hides Timetable\.schedule"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_defined(
    attributes: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        define(**attributes)


def test_a_class_without_a_schedule_is_a_base_for_others_and_cannot_be_registered() -> None:
    class InBerlin(Cron):
        timezone = "Europe/Berlin"

    class Daily(InBerlin):
        schedule = "0 6 * * *"

    assert Rules.of(Daily).instants.timezone == "Europe/Berlin"
    with pytest.raises(ConfigurationError, match="cron InBerlin has no schedule; give it one"):
        register(InBerlin())


def test_a_cron_without_a_workflow_cannot_be_registered() -> None:
    with pytest.raises(ConfigurationError, match="cron Nightly has no workflow; give it one"):
        register(define(WorkflowCron)())


def test_what_it_starts_must_be_a_workflow() -> None:
    with pytest.raises(ConfigurationError, match="is not a Workflow class"):
        define(WorkflowCron, workflow=Valid)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two definitions are registered as 'Valid'"):
        register(Valid(), Valid())


def test_a_cron_and_a_workflow_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two definitions are registered as 'Report'"):
        register(Report(), define(name="Report")())


def test_a_class_in_place_of_an_object_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"register instances of .*Cron classes"):
        register(Valid)
