"""What asyncio offers and a workflow's loop refuses, with an error that says where it belongs.

The base of ``workflow.loop``'s loop.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from engine.core.errors import ConfigurationError


class Refused:
    """A method of the loop that raises when it is called."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Callable[..., NoReturn]:
        return self._refuse

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise ConfigurationError(
            f"a workflow's body cannot use {self._what} ({self._name}): a replay could not repeat"
            " it. Do this in an activity: move it to a method marked @activity and await that"
        )


class Refusals:
    """Everything of an event loop that reaches outside, or that is the host's business."""

    create_connection: Any = Refused("the network")
    create_server: Any = Refused("the network")
    create_unix_connection: Any = Refused("the network")
    create_unix_server: Any = Refused("the network")
    create_datagram_endpoint: Any = Refused("the network")
    connect_accepted_socket: Any = Refused("the network")
    start_tls: Any = Refused("the network")
    sock_recv: Any = Refused("the network")
    sock_recv_into: Any = Refused("the network")
    sock_recvfrom: Any = Refused("the network")
    sock_recvfrom_into: Any = Refused("the network")
    sock_sendall: Any = Refused("the network")
    sock_sendto: Any = Refused("the network")
    sock_connect: Any = Refused("the network")
    sock_accept: Any = Refused("the network")
    sock_sendfile: Any = Refused("the network")
    sendfile: Any = Refused("the network")
    getaddrinfo: Any = Refused("the network")
    getnameinfo: Any = Refused("the network")

    run_in_executor: Any = Refused("threads")
    set_default_executor: Any = Refused("threads")
    shutdown_default_executor: Any = Refused("threads")
    call_soon_threadsafe: Any = Refused("threads")

    subprocess_exec: Any = Refused("subprocesses and pipes")
    subprocess_shell: Any = Refused("subprocesses and pipes")
    connect_read_pipe: Any = Refused("subprocesses and pipes")
    connect_write_pipe: Any = Refused("subprocesses and pipes")

    add_reader: Any = Refused("file descriptors")
    remove_reader: Any = Refused("file descriptors")
    add_writer: Any = Refused("file descriptors")
    remove_writer: Any = Refused("file descriptors")

    add_signal_handler: Any = Refused("signals")
    remove_signal_handler: Any = Refused("signals")

    run_forever: Any = Refused("the loop's own controls")
    run_until_complete: Any = Refused("the loop's own controls")
    stop: Any = Refused("the loop's own controls")
    close: Any = Refused("the loop's own controls")
    shutdown_asyncgens: Any = Refused("the loop's own controls")
    set_debug: Any = Refused("the loop's own controls")
    set_task_factory: Any = Refused("the loop's own controls")
    set_exception_handler: Any = Refused("the loop's own controls")
