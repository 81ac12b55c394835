//! Cells that are no matter of every client.

use libtest_mimic::Trial;

use crate::table::Table;

/// The trials, and their table.
pub fn trials() -> (Vec<Trial>, Table) {
    (Vec::new(), Table::new(&["result"]))
}
