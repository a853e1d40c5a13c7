"""Rows to a LanceDB folder: one table with vectors, which is searched where it lies."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.annotations import CsvReader
from vec_pipeline.commands.export.files import Written, parquet_schema, tables_as
from vec_pipeline.record import UserError

try:
    import lancedb
except ImportError:
    raise UserError("--to lance needs lancedb: pip install 'vec-pipeline[lance]'") from None

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "annotations"


def write(reader: CsvReader, folder: Path, options: argparse.Namespace) -> Written:
    """Write the table, in the types of `parquet_schema`, as rows come.

    Raises UserError where an embedding has different lengths.
    """
    import pyarrow as pa

    schema = parquet_schema(reader)
    mistakes: list[UserError] = []

    def batches() -> Iterator["pa.RecordBatch"]:
        try:
            for table in tables_as(reader, schema):
                yield from table.to_batches()
        except UserError as error:  # which LanceDB would wrap
            mistakes.append(error)
            raise

    try:  # with the schema, without which a column that is empty is an IndexError; what has no vector stays null
        data = pa.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(folder).create_table(TABLE, data, schema=schema, on_bad_vectors="null")
    except (RuntimeError, ValueError) as error:  # of LanceDB, a full disk included
        if mistakes:
            raise mistakes[0] from None
        raise UserError(f"LanceDB cannot write the table ({str(error).partition(chr(10))[0][:200]})") from None
    return Written(table.count_rows())
