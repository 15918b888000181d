"""`vla benchmark BENCHMARK`: a model's answers to a vision-language benchmark, and their scores."""

from __future__ import annotations

from pathlib import Path


def benchmark(*, benchmark: str, data: str, policy: str, limit: int | None, out: str) -> None:
    """Asks the backbone of `policy` (`vla.evaluation.vlm.answerer.open_answerer`) the official prompts of the
    benchmark.

    `data` is a folder with its official files and images, `limit` the number of questions (None: all). Into
    `out`/`benchmark` go answers.jsonl, as they come, and scores.json; the same command again goes on where it was cut
    off, and asks anew where the weights, the preprocessing or the questions are others since. Prints the scores with
    95 % bootstrap intervals and a table of categories. Raises InputError for files that are not the benchmark's, and
    for a folder with the answers of another policy.
    """
    from vla.commands.score import table
    from vla.common.atomic import write_json
    from vla.evaluation.vlm.answerer import open_answerer, preprocessing_of, weights_of
    from vla.evaluation.vlm.benchmark_run import ANSWERS, Files, prepare

    files = Files.open(benchmark, Path(data), limit)
    settings = {"benchmark": benchmark, "data": data, "policy": policy, "limit": limit}
    answerer = open_answerer(policy)
    settings |= {"weights": weights_of(policy), "preprocessing": preprocessing_of(answerer)}
    settings |= {"questions": files.digest, "answer tokens": files.tokens}
    folder = Path(out) / benchmark
    prepare(folder, settings)
    report = files.run(answerer, folder / ANSWERS)
    write_json(folder / "scores.json", settings | report)
    print(table(benchmark, report))
