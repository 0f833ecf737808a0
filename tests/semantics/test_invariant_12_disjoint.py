"""Invariant 12: test tasks never reach extraction or training, checked by id and by content."""

import pytest

from internalize.environments.docs.env import Docs
from internalize.errors import TaskError
from internalize.records import Task
from internalize.stages.plan import require_disjoint


def test_the_same_task_or_the_same_question_in_both_is_refused() -> None:
    one = Task.new("e", "train", "What is  the answer?", "42")
    same_id = one.model_copy(update={"split": "dev"})
    same_question = Task.new("e", "dev", "what is the ANSWER?", "43")
    for other in (same_id, same_question):
        with pytest.raises(TaskError, match=one.id):
            require_disjoint([one], [other])
    require_disjoint([one], [Task.new("e", "dev", "Something else?", "42")])


def test_the_splits_of_docs_share_no_task_no_question_and_no_page() -> None:
    env = Docs()
    splits = {split: env.tasks(split) for split in env.splits()}
    for name, tasks in splits.items():
        others = [t for other, rest in splits.items() if other != name for t in rest]
        require_disjoint(tasks, others)
    pages = {name: {p for t in tasks for leg in t.state["legs"] for p in leg[1:]} for name, tasks in splits.items()}
    assert not any(pages[a] & pages[b] for a in pages for b in pages if a < b)
