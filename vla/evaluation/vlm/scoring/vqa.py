"""VQAv2 and TextVQA: soft accuracy against ten human answers (Antol et al. 2015; Singh et al. 2019)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vla.evaluation.vlm.scoring.benchmark import Benchmark, mean, per_question, question_prompt
from vla.evaluation.vlm.scoring.files import Entry, as_list

SHORT = "Answer the question using a single word or phrase."
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
ARTICLES = frozenset({"a", "an", "the"})
MARKS = ';/[]"{}()=+\\_-><@`,?!'
# Both official scripts pass re.UNICODE as the number of replacements, so that they remove at most 32 full stops.
MOST_STOPS = int(re.UNICODE)

# Words whose missing apostrophe is restored; of several apostrophes, one may be missing.
WITH_APOSTROPHE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in WITH_APOSTROPHE.split() for i, mark in enumerate(word) if mark == "'"
} | {"somebody'd": "somebodyd"}


@lru_cache(2**16)  # human answers repeat
def plain(text: str) -> str:
    """Lower case, without punctuation and articles, number words as digits, contractions with their apostrophe."""
    joined = bool(re.search(r"\d,\d", text))
    result = text
    for mark in MARKS:
        drop = joined or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if drop else " ")
    result = re.sub(r"\.(?!\d)", "", result, count=MOST_STOPS)
    words = (NUMBERS.get(word, word) for word in result.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def agreement(prediction: str, people: Sequence[str]) -> float:
    """The mean, over leaving one person out, of min(number of equal answers of the others / 3, 1)."""
    same, n = Counter(people)[prediction], len(people)
    return (same * min((same - 1) / 3, 1.0) + (n - same) * min(same / 3, 1.0)) / n if n else 0.0


def vqav2(entry: Entry, prediction: str) -> float:
    """Answers are normalised only if the human answers differ, as in the official script."""
    spaced = [_spaced(str(answer["answer"])) for answer in entry["answers"]]
    prediction = _spaced(prediction)
    return (
        agreement(plain(prediction), [plain(a) for a in spaced])
        if len(set(spaced)) > 1
        else agreement(prediction, spaced)
    )


def textvqa(entry: Entry, prediction: str) -> float:
    """Uses EvalAI's processor, which also removes commas and question marks and separates a possessive."""
    return agreement(_evalai(prediction), [_evalai(answer) for answer in as_list(entry["answers"])])


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _evalai(text: str) -> str:
    return plain(_spaced(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()))


VQAV2 = Benchmark(
    per_question(vqav2, "answer_type", "question_type"), mean("accuracy"), question_prompt(SHORT), truth=("answers",)
)
TEXTVQA = Benchmark(per_question(textvqa), mean("accuracy"), question_prompt(SHORT), truth=("answers",))
