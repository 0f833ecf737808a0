"""Error tree.

    InternalizeError
    ├── UserError            wrong use or bad input: one clear sentence, exit code 2
    │   ├── ConfigError      a recipe key or value
    │   ├── DataError        a file, line or field that cannot be read
    │   ├── TaskError        an environment or task set that does not fit
    │   ├── NothingLearnt    the first rollouts of a run all failed
    │   └── Busy             another process works in this run directory
    ├── Incomplete           stopped early, resumable, exit code 3
    └── InfrastructureError  an engine or environment broke: the episode is unscored and owed again
        ├── ContextError     a prompt is longer than the model can read; asking again will not help
        ├── Declined         a server declines what a request says; asking again will not help
        └── EmptyAnswer      every try was answered, and the last answer was empty

A failed *episode* is never an exception outside `rollout`: it becomes a trajectory with
`failure` set and `score` None.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InternalizeError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(InternalizeError):
    """Wrong use or bad input; the message is one sentence for the user."""


class ConfigError(UserError):
    """A recipe key or value is unknown or out of range; the message names it."""


class DataError(UserError):
    """A file cannot be read; the message names file, line and field."""


class TaskError(UserError):
    """An environment or its task set does not fit what was asked."""


class NothingLearnt(UserError):  # noqa: N818 - a finding rather than a fault
    """The first rollouts of a run all failed, and neither experience nor training episodes came of them."""


class Busy(UserError):  # noqa: N818 - a state of the directory rather than a fault
    """Another process works in this run directory."""


class Incomplete(InternalizeError):  # noqa: N818 - a state of the work rather than a fault
    """Work is left; the run directory can be resumed."""


class InfrastructureError(InternalizeError):
    """An engine, environment or judge broke; never a score. `kind` is the name under which the failure is counted."""

    kind = "unreachable"


class ContextError(InfrastructureError):
    """A prompt is longer than the model can read, so there is no answer; asking again will not help."""

    kind = "too long"


class Declined(InfrastructureError):  # noqa: N818 - a decision of the server
    """A filter of the server declines what a request says, so there is no answer; asking again will not help."""

    kind = "refused"


class EmptyAnswer(InfrastructureError):  # noqa: N818 - what came instead of an answer
    """Every try was answered, and the last answer was empty."""

    kind = "empty"


def first_line(error: object) -> str:
    """The first line of the message of another library's error; the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to a misspelt one, as the end of a sentence; "" if none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
