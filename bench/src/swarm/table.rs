//! Rows of numbers that are no transfers.

use std::fmt::Write as _;

use serde::Serialize;

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// What belongs to one name.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub who: String,
    pub values: Vec<f64>,
}

impl Table {
    pub fn new(title: &str, columns: &[&str]) -> Table {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Table { title: title.to_owned(), columns, rows: Vec::new() }
    }

    pub fn row(&mut self, who: &str, values: &[f64]) {
        self.rows.push(Row { who: who.to_owned(), values: values.to_vec() });
    }

    /// In Markdown.
    pub fn to_text(&self) -> String {
        let mut text = format!("\n{}\n\n| who |", self.title);
        for column in &self.columns {
            let _ = write!(text, " {column} |");
        }
        let _ = write!(text, "\n|---|{}", "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let _ = write!(text, "\n| {} |", row.who);
            for value in &row.values {
                let _ = write!(text, " {value:.3} |");
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_cell_for_each_column() {
        let mut table = Table::new("speeds", &["MB/s", "ms"]);
        table.row("who", &[1.0, 2.5]);
        assert_eq!(
            table.to_text(),
            "\nspeeds\n\n| who | MB/s | ms |\n|---|---|---|\n| who | 1.000 | 2.500 |\n"
        );
    }
}
