"""The token of an attempt: by it somebody outside completes a step that has left its end to them.

A step reads it as ``self.token``; ``client.complete`` and ``client.fail`` make of it a message to
the step's execution, which ``workflow.incoming`` takes.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass

from engine.core.envelope import dedup_key
from engine.core.errors import InvalidPayload

_COMPLETE, _FAIL = "complete:", "fail:"
_LONGEST = 200
_LAST = (1 << 31) - 1
_OF = re.compile(
    r"(?P<run>[0-9]{1,10})\.(?P<ordinal>[0-9]{1,10})\.(?P<attempt>[0-9]{1,10})\.(?P<name>.+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Which attempt a message ends, and how."""

    run: int
    name: str
    ordinal: int
    attempt: int
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepToken:
    """One attempt of a step of an execution; ``group`` is the shard group of its workflow."""

    group: str
    workflow: str
    id: str
    run: int
    name: str
    ordinal: int
    attempt: int

    def __str__(self) -> str:
        """The text that is handed out: letters, digits, '-' and '_'."""
        parts = [
            self.group,
            self.workflow,
            self.id,
            self.run,
            self.name,
            self.ordinal,
            self.attempt,
        ]
        encoded = json.dumps(parts, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(encoded).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "StepToken":
        """``InvalidPayload`` when the text is no token."""
        try:
            padded = text.strip().encode() + b"=" * (-len(text.strip()) % 4)
            group, workflow, id, run, name, ordinal, attempt = json.loads(
                base64.b64decode(padded, altchars=b"-_", validate=True)
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise _no_token(text) from error
        texts, numbers = (group, workflow, id, name), (run, ordinal, attempt)
        # Whoever may complete a step may come with anything; what is not printable no text in the
        # database is, and no count is beyond those of its columns.
        if not all(isinstance(each, str) and each and each.isprintable() for each in texts):
            raise _no_token(text)
        if not all(type(each) is int and 0 <= each <= _LAST for each in numbers):
            raise _no_token(text)
        return cls(
            group=group,
            workflow=workflow,
            id=id,
            run=run,
            name=name,
            ordinal=ordinal,
            attempt=attempt,
        )

    @property
    def _place(self) -> str:
        return f"{self.run}.{self.ordinal}.{self.attempt}.{self.name}"

    def tag(self, *, failed: bool) -> str:
        """The tag of the message that ends it."""
        return (_FAIL if failed else _COMPLETE) + self._place

    @property
    def key(self) -> str:
        """What the messages that end it are deduplicated by: the first wins."""
        place = self._place
        if len(place) > _LONGEST:
            place = f"sha256:{hashlib.sha256(place.encode()).hexdigest()}"
        return dedup_key("completion", self.workflow, f"{len(self.id)}.{self.id}/{place}")


def completion_of(tag: str) -> Completion | None:
    """What a tag says of an attempt's end; None for another kind of message."""
    failed = tag.startswith(_FAIL)
    if not failed and not tag.startswith(_COMPLETE):
        return None
    found = _OF.fullmatch(tag.partition(":")[2])
    if found is None:
        return None
    return Completion(
        run=int(found["run"]),
        name=found["name"],
        ordinal=int(found["ordinal"]),
        attempt=int(found["attempt"]),
        failed=failed,
    )


def _no_token(text: str) -> InvalidPayload:
    return InvalidPayload(f"{text[:40]!r} is no token: pass what the step read as self.token")
