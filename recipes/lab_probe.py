"""How often a policy of the laboratory follows a hint, by kind: `python recipes/lab_probe.py [MODEL]`.

For every sign, on pages of domains drawn anew: the probability of the action that a rule orders, with the rule shown
beside one about another sign, with the opposite rule shown, and with neither. Kinds and signs that the policy saw no
hint about in its training are marked "unseen".
"""

from __future__ import annotations

import random
import sys

import torch
from lab_data import UNSEEN_KINDS, UNSEEN_SIGNS, ordered, sign_at
from scripted import call_ids, past

from internalize.environments.lab import world
from internalize.environments.lab.env import SYSTEM, Lab
from internalize.experience.inject import render_items
from internalize.experience.rules import phrase, taken_by
from internalize.inference.loading import load_policy
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Situation
from internalize.records import Message, Step

PAGES = 40


@torch.no_grad()
def probe(source: str, pages: int = PAGES) -> dict[str, list[float]]:
    """By a sign's word: the mean probability with the rule, with the opposite one, with neither."""
    model, tokenizer = load_policy(source, "none", "cpu")
    renderer, rng = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"]), random.Random(1)
    system = f"{SYSTEM}\n{renderer.instructions(Lab.tools)}"

    def probability(question: str, turns: list[Step], hint: str, action: tuple[int, ...]) -> float:
        prompt = (Message(role="system", content=system), Message(role="user", content=question))
        context = renderer.context(prompt, turns, hint).ids
        logits = model(torch.tensor([[*context, *action]])).logits[0, len(context) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(action)[:, None]).sum().exp())

    found: dict[str, list[tuple[float, float, float]]] = {}
    while any(len(found.get(sign.word, ())) < pages for sign in world.SIGNS):
        family, kinds = rng.choice(list(world.FAMILIES.items()))
        task = world.Builder(world.random_domain(rng), world.NAMES, rng).task("probe", family, kinds)
        episode, situation, turns = Lab().episode(task), Situation(task.question), list[Step]()
        for good in world.route_of(task):
            sign = sign_at(situation)
            if sign and len(found.setdefault(sign.word, [])) < pages:
                bit, other = rng.random() < 0.5, rng.choice([s for s in world.SIGNS if s != sign])
                shown = [[phrase(sign.rule(one)), phrase(other.rule(rng.random() < 0.5))] for one in (bit, not bit)]
                action = call_ids(renderer, ordered(sign, bit, situation), Lab.tools)
                hints = [render_items(rng.sample(texts, 2)) for texts in shown]
                found[sign.word].append(tuple(probability(task.question, turns, h, action) for h in (*hints, "")))  # type: ignore[arg-type]
            seen = episode.step(good) or ""
            turns.append(past(renderer, good, Lab.tools, seen))
            situation = situation._replace(results=(seen,), taken=situation.taken + taken_by(good))
    return {word: [sum(column) / pages for column in zip(*rows, strict=True)] for word, rows in found.items()}


def main() -> None:
    found = probe(sys.argv[1] if len(sys.argv) > 1 else "lab")
    print("sign        kind     hints    ordered  opposite  no hint")
    for sign in world.SIGNS:
        unseen = "unseen" if sign.kind in UNSEEN_KINDS or sign.word in UNSEEN_SIGNS else "seen"
        print(f"{sign.word:<11} {sign.kind:<8} {unseen:<8} " + "  ".join(f"{mean:7.2f}" for mean in found[sign.word]))


if __name__ == "__main__":
    main()
