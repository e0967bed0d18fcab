"""How large one value may be once it is encoded: checked where it is made, before it is queued.

Given by ``Settings.payload_limit`` to whatever encodes values: senders, handlers, steps.
"""

import logging

from engine.core.errors import InvalidPayload
from engine.core.seal import MARK

log: logging.Logger = logging.getLogger(__name__)


class PayloadLimit:
    """A value larger than ``size`` bytes is refused; one larger than half of that is reported.

    >>> PayloadLimit(8).check(b'"much too long"', "the result of Fulfil.charge")
    Traceback (most recent call last):
    engine.core.errors.InvalidPayload: the result of Fulfil.charge is 15 bytes, more than the 8 ...
    """

    __slots__ = ("_half", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._half = size // 2

    def check(self, payload: bytes, *what: str) -> bytes:
        """The payload, or ``InvalidPayload`` that names it by the words of ``what``."""
        if len(payload) > self._half:
            self._report(len(payload), " ".join(what))
        if payload.startswith(MARK):
            raise InvalidPayload(
                f"{' '.join(what)} begins as only what a codec has encoded does: put a byte before"
            )
        return payload

    def _report(self, size: int, what: str) -> None:
        if size > self.size:
            raise InvalidPayload(
                f"{what} is {size} bytes, more than the {self.size} that payload_limit (variable"
                " OUTLAST_PAYLOAD_LIMIT) allows: keep what is that large elsewhere and pass a"
                " reference, or raise the limit"
            )
        log.warning(
            "a payload is larger than half of payload_limit",
            extra={"payload": what, "size": size, "limit": self.size},
        )
