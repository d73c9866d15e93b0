"""Errors of workflows, by who meets them.

In workflow code (what an ``await`` may raise):

    WorkflowError
    ├── ActivityFailed              the activity raised, timed out, ended its process again and again, or gave something
    │                               unencodable, and no attempt is left
    ├── ActorCallFailed             the called actor's turn failed; it left no trace there
    └── WorkflowGuardError          the code asked for something a replay cannot repeat; says what to use instead

At the client (what a call of `WorkflowClient` may raise):

    WorkflowError
    ├── UnknownWorkflow             no workflow of that name is served here
    ├── InvalidWorkflowInput        not what the workflow's annotation asks for
    ├── PayloadLost                 a large value is not in the store any more: its instance was purged meanwhile, or
    │                               the store has lost it
    ├── InstanceExists              that id is in use by an unfinished instance
    ├── InstanceNotFound
    ├── InstanceNotTerminal         purge of an unfinished instance: terminate it first, or force
    ├── WorkflowFailed              waited for an instance whose code raised
    ├── WorkflowTerminated          waited for an instance that was terminated
    └── WorkflowStalled             waited for an instance that needs a person: see its reason, deploy a fix, resume it

Inside the engine: `Stall` (this instance cannot go on with the present code) and `WorkflowEvicted`, a `BaseException`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class WorkflowError(Exception):
    """Base of everything this package raises on purpose."""


class Failure(NamedTuple):
    """An exception as data: class name, text, formatted traceback ("" where there is none)."""

    type: str
    message: str
    traceback: str = ""


class PayloadLost(WorkflowError):
    """A value that is stored beside a history is not there, or not whole. Of an instance that stands it stalls the
    instance: the store has lost what it had acknowledged."""


class StepFailed(WorkflowError):
    """A durable step ended in an error. `error_type` is the class name of the original exception."""

    def __init__(self, what: str, failure: Failure) -> None:
        super().__init__(f"{what}: {failure.type}: {failure.message}")
        self.what, self.failure = what, failure

    @property
    def error_type(self) -> str:
        return self.failure.type

    @property
    def message(self) -> str:
        return self.failure.message


class ActivityFailed(StepFailed):
    """`error_type` is `ActivityTimeout` when its time was over, `WorkerDied` when its process has ended again and
    again: workflow code gets these two by name only."""


class ActorCallFailed(StepFailed):
    pass


class WorkflowGuardError(WorkflowError):
    """Workflow code did something whose outcome a replay cannot repeat. Uncaught, it stalls the instance: nothing is
    lost, and the instance goes on once the code is fixed."""


class UnknownWorkflow(WorkflowError):
    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"no workflow named {name!r} is served here; there is {', '.join(sorted(known)) or 'none'}")
        self.name = name


class InvalidWorkflowInput(WorkflowError):
    pass


class InstanceExists(WorkflowError):
    def __init__(self, instance_id: str) -> None:
        super().__init__(f"an active workflow with ID '{instance_id}' already exists")
        self.instance_id = instance_id


class InstanceNotFound(WorkflowError):
    def __init__(self, instance_id: str) -> None:
        super().__init__(f"no workflow instance {instance_id!r} exists")
        self.instance_id = instance_id


class InstanceNotTerminal(WorkflowError):
    def __init__(self, instance_id: str, status: str) -> None:
        super().__init__(f"workflow instance {instance_id!r} is {status}: terminate it first, or purge it with force")
        self.instance_id, self.status = instance_id, status


class WorkflowFailed(WorkflowError):
    def __init__(self, instance_id: str, failure: Failure) -> None:
        super().__init__(f"workflow instance {instance_id!r} failed: {failure.type}: {failure.message}")
        self.instance_id, self.failure = instance_id, failure


class WorkflowTerminated(WorkflowError):
    def __init__(self, instance_id: str, output: Any) -> None:
        super().__init__(f"workflow instance {instance_id!r} was terminated")
        self.instance_id, self.output = instance_id, output


class WorkflowStalled(WorkflowError):
    def __init__(self, instance_id: str, failure: Failure) -> None:
        super().__init__(f"workflow instance {instance_id!r} is stalled: {failure.message}")
        self.instance_id, self.failure = instance_id, failure


class Stall(Exception):
    """The present code cannot carry this instance on. `kind` is NondeterminismError, WorkflowGuardError,
    UnknownWorkflow, InvalidWorkflowInput, StuckWorkflow, PayloadLost or EngineError; `message` names the step and the
    source line where there is one."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


class Refused(Exception):
    """What an instance was asked for was not done; the message is the word that says why. An error, so that the answer
    is not remembered under the call's key: what is refused now may be possible when it is asked for again."""


class WorkflowEvicted(BaseException):
    """Raised by any command of a workflow whose loop is gone. Nothing but a leftover reference can meet it: the frames
    of an evicted workflow are discarded, they do not run again."""
