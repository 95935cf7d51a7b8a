//! Text for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::failure::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

#[derive(Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// The value as JSON, or what `text` makes of it.
    pub(super) fn show(&self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let mut told = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Text => text(value),
        };
        if !told.is_empty() && !told.ends_with('\n') {
            told.push('\n');
        }
        Ok(io::stdout().write_all(told.as_bytes())?)
    }

    /// One of many that come one by one: a line of JSON, or of what `text` makes of it.
    pub(super) fn line(&self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let told = match self.format {
            Format::Json => value.to_string(),
            Format::Text => printable(&text(value)).replace('\n', " "),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{told}")?;
        // Whoever reads it shall have it now.
        Ok(out.flush()?)
    }

    /// An error, as it is written to standard error.
    pub(super) fn failure(&self, failure: &Failure) -> String {
        match (self.format, failure) {
            (Format::Json, Failure::Problem(problem)) if !problem.document.is_null() => problem.document.to_string(),
            (Format::Json, failure) => json!({ "title": failure.to_string() }).to_string(),
            (Format::Text, failure) => format!("error: {}", printable(&failure.to_string())),
        }
    }
}

/// Columns as wide as what is in them.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(titles.iter().map(|title| (*title).to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()))
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A value as one cell: text without quotes, nothing as a dash.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Without what a terminal would obey: others decide what stands in names and reasons.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() && character != '\n' { '\u{fffd}' } else { character })
        .collect()
}

/// A row for each object of a list, a cell for each of the names.
pub(super) fn rows(list: &Value, names: &[&str]) -> Vec<Vec<String>> {
    let row = |item: &Value| names.iter().map(|name| cell(item.pointer(name).unwrap_or(&Value::Null))).collect();
    list.as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_terminals_are_not_commanded() {
        let list = json!([{ "id": "a\u{1b}[31m", "hosts": ["x", "y"] }, { "id": "longer-name", "hosts": [] }]);
        let text = table(&["ID", "HOSTS"], &rows(&list, &["/id", "/hosts"]));
        assert_eq!(text, "ID           HOSTS\na\u{fffd}[31m       x, y\nlonger-name\n");
    }
}
