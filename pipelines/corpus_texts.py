"""The texts of a corpus's rows: of a document one, of a conversation what each of its messages says."""

import pyarrow as pa
import pyarrow.compute as pc


def text_column(schema: pa.Schema) -> str:
    """The column of a corpus's file that `texts` reads."""
    return "text" if "text" in schema.names else "messages"


def texts(rows: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """(string, int64), one each a text: the text, and the row that it is of, counted from 0 in `rows`.

    A message is encoded by itself when a conversation is learned from, so it is a text by itself.
    """
    column = text_column(rows.schema)
    if column == "text":
        return rows["text"], pa.array(range(len(rows)), pa.int64())
    messages = rows["messages"]
    return pc.struct_field(pc.list_flatten(messages), "content"), pc.list_parent_indices(messages)
