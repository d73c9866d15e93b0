"""An application for any client that speaks HTTP. Serve it, and talk to it:

    $ mecha run examples/guestbook.py --store sqlite:///guestbook.db

    $ curl -X PUT http://127.0.0.1:3500/v1.0/actors/Guestbook/lobby/method/sign -d '{"name": "Ada", "text": "hello"}'
    1
    $ curl -X PUT http://127.0.0.1:3500/v1.0/actors/Guestbook/lobby/method/sign -d '["Grace", "hi"]'
    2
    $ curl http://127.0.0.1:3500/v1.0/actors/Guestbook/lobby/method/last -d 1
    [{"name":"Grace","text":"hi"}]
    $ curl -X POST 'http://127.0.0.1:3500/v1.0/workflows/mecha/greet/start?instanceID=greet-ada' -d '"Ada"'
    {"instanceID":"greet-ada"}
    $ curl http://127.0.0.1:3500/v1.0/mecha/workflows/greet-ada/result
    {"instanceID":"greet-ada","runtimeStatus":"COMPLETED","output":"Ada was greeted, page 3", ...}

A body is the argument: one parameter takes the JSON value itself, several an object by name or an array by position.
"""

from __future__ import annotations

from typing import NamedTuple

from actors import actor, method
from workflow import activity, workflow
from workflow import actor as actor_of


class Entry(NamedTuple):
    name: str
    text: str


@actor
class Guestbook:
    entries: list[dict[str, str]] = []  # noqa: RUF012  # each actor gets a copy

    @method
    async def sign(self, name: str, text: str) -> int:
        self.entries.append({"name": name, "text": text})
        return len(self.entries)

    @method(read_only=True)
    async def last(self, number: int) -> list[dict[str, str]]:
        return self.entries[-number:] if number > 0 else []


@activity
async def compose(name: str) -> str:
    return f"welcome, {name}"


@workflow
async def greet(name: str) -> str:
    page = await actor_of(Guestbook, "lobby").sign("the house", await compose(name))
    return f"{name} was greeted, page {page}"
