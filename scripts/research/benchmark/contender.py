"""One contender in a process of its own: `python -m scripts.research.benchmark.contender NAME job.json result.json ...`."""

import json
import sys
from pathlib import Path

from scripts.research.benchmark.job import model_numbers, read_job
from scripts.research.benchmark.meter import Meter


def main() -> None:
    name, job_file, result_file = sys.argv[1:4]
    job = read_job(Path(job_file))
    meter = Meter(on_gpu=job.device != "cpu")
    if name == "products":
        from scripts.research.benchmark.products import rates

        numbers = model_numbers(job.checkpoints[0])
        assert numbers is not None
        Path(result_file).write_text(json.dumps(rates(numbers["width"], numbers["inner"], job.device)))
        return
    if name == "pipeline":
        from scripts.research.benchmark.phases import pipeline

        meter.started()
        ndcg = pipeline(job, meter, sys.argv[4:])
    elif name == "sentence-transformers":
        from scripts.research.benchmark.sentences import sentence_transformers

        meter.started()
        ndcg = sentence_transformers(job, meter)
    else:
        from scripts.research.benchmark.padded import asyncval, tevatron

        meter.started()
        ndcg = {"asyncval": asyncval, "tevatron": tevatron}[name](job, meter)
    meter.save(Path(result_file), ndcg)


if __name__ == "__main__":
    main()
