"""Writes the questions of the example: one JSON object a line. Yours come from wherever your tasks are."""

import json

import internalize as it

for split in ("train", "dev"):
    for task in it.make_environment("docs").tasks(split):
        print(json.dumps({"question": task.question, "answer": task.answer, "split": split, "family": task.family}))
