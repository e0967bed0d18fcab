"""Pauses of whole workflows, as every storage keeps them and tells runners of them."""

from tests.storage.world import Process


async def test_a_pause_is_kept_as_it_was_said_first_until_it_ends(process: Process) -> None:
    storage = process.storage

    none = await storage.write_pause("Fulfil", paused=False, reason="", by="ada")
    first = await storage.write_pause("Fulfil", paused=True, reason="deploy", by="ada")
    second = await storage.write_pause("Fulfil", paused=True, reason="me too", by="bob")
    paused = await storage.pauses()
    over = await storage.write_pause("Fulfil", paused=False, reason="done", by="bob")
    resumed = await storage.pauses()

    assert (none, first, second, over) == (False, True, False, True)
    assert [(each.paused, each.reason, each.by) for each in paused.values()] == [
        (True, "deploy", "ada")
    ]
    assert [(each.paused, each.reason, each.by) for each in resumed.values()] == [
        (False, "done", "bob")
    ]
    assert resumed["Fulfil"].at >= paused["Fulfil"].at


async def test_every_heartbeat_tells_of_the_pauses(process: Process) -> None:
    before = await process.registry.beat(process.runner)
    await process.storage.write_pause("Fulfil", paused=True, reason="ü", by="ada")
    await process.storage.write_pause("Refund", paused=True, reason="", by="bob")
    beat = await process.registry.beat(process.runner)

    assert before.pauses == {}
    assert beat.pauses == await process.storage.pauses()
    assert beat.pauses.keys() == {"Fulfil", "Refund"}
