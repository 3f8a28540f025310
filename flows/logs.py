"""Our loggers' lines on the page of the run that they belong to, in whatever process a stage runs."""

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from dd_tasks.redaction import hush, without_secrets

P = ParamSpec("P")
R = TypeVar("R")
OURS = ("dd_tasks", "flows")


class RunPage(APILogHandler):
    """Sends a line that is made within a run to its page, led by the stage and its panel; any other line nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        if TaskRunContext.get() or FlowRunContext.get():
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        line, stage = super().format(record), TaskRunContext.get()
        return f"{stage.task_run.name}: {line}" if stage else line


def reach_the_page() -> None:
    """Send our loggers' lines to the pages of runs, once each and without secrets. A process that has set no level, as
    a worker, sends all of them."""
    hush()
    for logger in map(logging.getLogger, OURS):
        if not any(isinstance(handler, RunPage) for handler in logger.handlers):
            others = [handler for handler in logger.handlers if not isinstance(handler, APILogHandler)]
            logger.handlers[:] = [*others, RunPage()]
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.DEBUG)


def on_its_page(function: Callable[P, R]) -> Callable[P, R]:
    """The function of a stage, whose lines reach the page of its task run. Neither they nor its failures, which Prefect
    keeps, tell a secret."""

    @functools.wraps(function)
    def logged(*arguments: P.args, **named: P.kwargs) -> R:
        reach_the_page()
        try:
            return function(*arguments, **named)
        except Exception as error:
            if (failure := without_secrets(error)) is error:
                raise
        raise failure

    return logged
