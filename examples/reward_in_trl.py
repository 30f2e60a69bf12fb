"""One of our rewards as a reward function of TRL's GRPOTrainer, and a TRL function as one of ours.

Runs without TRL: it calls the adapted reward exactly as the trainer would. The comment at the end shows the trainer.

    python examples/reward_in_trl.py
"""

from aligngym.rewards import as_reward
from aligngym.rewards.trl import to_trl


def accuracy_reward(completions: list[str], answer: list[str], **kwargs: object) -> list[float | None]:
    """A function written for TRL: None means that it does not apply to this row."""
    return [None if a is None else float(a in c) for c, a in zip(completions, answer, strict=True)]


def main() -> None:
    ours = (0.8 * as_reward("story_sentiment")).clip(-1, 1)
    for_trl = to_trl(ours)
    prompts = ["Tom found a key.", "Anna lost her hat."]
    completions = [" He was so happy! He opened the old door.", " She was sad and cried."]
    print(for_trl.__name__, for_trl(prompts=prompts, completions=completions, completion_ids=None))

    theirs = as_reward(accuracy_reward) + 0.1 * ours
    scores = theirs.score(completions, prompts, answer=["door", None])
    print("ours from theirs:", scores.values, {k: v.tolist() for k, v in scores.terms.items()})
    # trainer = trl.GRPOTrainer(model=..., reward_funcs=[for_trl], train_dataset=..., args=trl.GRPOConfig(...))


if __name__ == "__main__":
    main()
