"""`vla benchmark BENCHMARK`: runs a vision-language benchmark and scores the model's answers."""

from __future__ import annotations

from pathlib import Path


def benchmark(*, benchmark: str, data: str, policy: str, limit: int | None, out: str) -> None:
    """Runs the official prompts of a benchmark on the backbone of a policy, and prints and stores the scores.

    Answers are appended to `out`/`benchmark`/answers.jsonl as they are generated; the scores, with 95 % bootstrap
    intervals and a table of categories, are written to scores.json. Running the same command again resumes an
    interrupted run; it starts over if the weights, the preprocessing or the questions have changed.

    Args:
        benchmark: Name of the benchmark.
        data: Folder with its official files and images.
        policy: Model, as `vla.evaluation.vlm.answerer.open_answerer` accepts it.
        limit: Number of questions; None: all.
        out: Output folder.

    Raises:
        InputError: The files are not those of the benchmark, or the output folder has answers of another policy.
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
