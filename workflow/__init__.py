"""Durable workflows: deterministic asyncio programs over a recorded history."""

from __future__ import annotations

from workflow.activities import ActivityInfo, ActivityTimeout, WorkerDied, activity_info
from workflow.client import HistoryEntry, WorkflowClient, WorkflowHandle, WorkflowState, instance_id_of
from workflow.context import WorkflowInfo, actor, current, send, set_status, wait_event
from workflow.definition import Activity, RetryPolicy, Workflow, activity, workflow
from workflow.engine import Engine
from workflow.errors import (
    ActivityFailed,
    ActorCallFailed,
    Failure,
    InstanceExists,
    InstanceNotFound,
    InstanceNotTerminal,
    InvalidWorkflowInput,
    PayloadLost,
    StepFailed,
    UnknownWorkflow,
    WorkflowError,
    WorkflowFailed,
    WorkflowGuardError,
    WorkflowStalled,
    WorkflowTerminated,
)
from workflow.history import STATUSES

__all__ = [
    "STATUSES",
    "Activity",
    "ActivityFailed",
    "ActivityInfo",
    "ActivityTimeout",
    "ActorCallFailed",
    "Engine",
    "Failure",
    "HistoryEntry",
    "InstanceExists",
    "InstanceNotFound",
    "InstanceNotTerminal",
    "InvalidWorkflowInput",
    "PayloadLost",
    "RetryPolicy",
    "StepFailed",
    "UnknownWorkflow",
    "WorkerDied",
    "Workflow",
    "WorkflowClient",
    "WorkflowError",
    "WorkflowFailed",
    "WorkflowGuardError",
    "WorkflowHandle",
    "WorkflowInfo",
    "WorkflowStalled",
    "WorkflowState",
    "WorkflowTerminated",
    "activity",
    "activity_info",
    "actor",
    "current",
    "instance_id_of",
    "send",
    "set_status",
    "wait_event",
    "workflow",
]
