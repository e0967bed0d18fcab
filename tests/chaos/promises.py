"""What a chaos run may find broken: each promise is a name, and what it says."""

from dataclasses import dataclass

PROMISES = {
    "answered": "what is asked for is refused only for a reason that the client expects",
    "chunks": "a stream's elements come in order, without gaps, the exit after the last",
    "early": "a timer never fires before it is due",
    "effects": "the SQL of a @transaction is there exactly once for its journal row",
    "ended": "what was started has ended and nothing is left to deliver",
    "epochs": "a shard's epoch never goes back and begins with one incarnation",
    "fenced": "nobody but the owner commits work for a shard",
    "invented": "nothing is there that nobody asked for",
    "journal": "what a replay has seen of a journal stays as it is, and more comes only behind it",
    "keys": "a step has the same idempotency key and the same arguments on every attempt",
    "lost": "what was acknowledged is there",
    "one exit": "a request has one exit and no second",
    "one key": "a key names one request, and another payload under it is refused",
    "order": "what was acknowledged before another was sent comes before it",
    "reply": "a reply is what the model says",
    "twice": "nothing is there twice",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    promise: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.key}: {self.what} (but {PROMISES[self.promise]})"
