"""Parquet files, read batch by batch."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from wardround.core.checked import parse_options
from wardround.core.errors import DataError
from wardround.training.sources._arrow import BATCH_ROWS, arrow_rows, check_columns
from wardround.training.sources._files import open_binary
from wardround.training.sources.contract import BrokenRow, Row


class Options(BaseModel):
    """None so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Parquet:
    """Streams record batches; a gzipped file is unzipped in memory, since Parquet is read from its end."""

    suffixes = (".parquet", ".parquet.gz")

    def read(self, path: Path, options: dict[str, Any]) -> Iterator[Row | BrokenRow]:
        """Yield rows in order, numbered from 1; one batch is in memory. Broken rows: `not_utf8`.

        Raises:
            DataError: Missing, unreadable, damaged, or no Parquet file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        parse_options(Options, options, "options of the parquet source")
        with open_binary(path) as binary:
            content = io.BytesIO(binary.read()) if isinstance(binary, gzip.GzipFile) else binary
            try:
                file = pq.ParquetFile(content)
                check_columns(path, file.schema_arrow.names)
                yield from arrow_rows(file.iter_batches(batch_size=BATCH_ROWS))
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"{path} is not a whole Parquet file",
                    found=type(error).__name__,
                    remedy="write or copy it again, or name its kind",
                ) from error


SOURCE = Parquet()
