"""Values of a metric per query: read back from beside the ledger, and moved with their mean."""

from pathlib import Path

import numpy as np

from dr_validate.report_notes import as_reported
from dr_validate.values import Float64, Report


def moved(per_query: Float64, naive: Float64, mean: float, new_mean: float, naive_mean: float) -> Float64:
    """`per_query` with mean `new_mean` instead of `mean`; each stays between 0 and its sampled value. All (num_queries,)."""
    if new_mean >= naive_mean:
        return naive
    if new_mean > mean:
        lifted: Float64 = (per_query + (new_mean - mean) / (naive_mean - mean) * (naive - per_query)).clip(max=naive)
        return lifted
    return per_query * (new_mean / mean) if new_mean < mean else per_query


def read_query_values(state_dir: Path, report: Report, metric: str) -> dict[str, float]:
    """What `results.write_query_values` wrote for a Report, moved with the value of a Report that is `refined`.

    Empty where there is none. Raises OSError for a file that cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    path = state_dir / "queries" / report.spec / f"{report.checkpoint.digest.replace(':', '-')}.parquet"
    if not path.is_file():
        return {}
    was, wanted = as_reported(report, metric), [("metric", "==", metric)]
    columns = ["query_id", "value"] if was is None else ["query_id", "value", "naive"]
    try:
        table = pyarrow.parquet.read_table(path, columns=columns, filters=wanted, use_threads=False)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise OSError(f"{path}: cannot be read ({error})") from error
    ids = table.column("query_id").to_pylist()
    value = table.column("value").to_numpy().astype(np.float64)
    if was is not None:
        naive, estimate = table.column("naive").to_numpy().astype(np.float64), report.metrics[metric]
        value = moved(value, naive, was, estimate.value, estimate.naive)
    return {query: each for query, each in zip(ids, value.tolist(), strict=True) if each == each}
