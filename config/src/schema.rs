//! The JSON Schema of both files.
