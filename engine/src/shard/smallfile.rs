//! Small files of our own: fetched metainfo, leaf sidecars.
//!
//! Open, write, sync, close, each an operation of its own. What is written checks itself when it is
//! read (by its hash), so that a torn file only costs another fetch.

use std::path::PathBuf;

use super::{Flight, Shard};
use crate::io::{Done, FileId, Op, OpenMode};

/// A small file on its way.
#[derive(Debug)]
pub(super) struct SmallFile {
    path: PathBuf,
    /// What is still to be written and where.
    rows: Vec<(u64, Vec<u8>)>,
    needs_sync: bool,
    file: Option<FileId>,
}

impl Shard {
    /// Writes parts of a file in the state folder.
    pub(super) fn write_state_file(
        &mut self,
        path: PathBuf,
        rows: Vec<(u64, Vec<u8>)>,
        needs_sync: bool,
    ) {
        let root = self.state.dir().clone();
        let needs_sync = needs_sync && self.config.durable;
        let small = SmallFile { path: path.clone(), rows, needs_sync, file: None };
        let id = self.flights.insert(Flight::SmallFile(small));
        self.out.push_back(Op::Open { id, root, path, mode: OpenMode::Write, direct: false });
    }

    /// A step has ended: the next one.
    pub(super) fn small_file_step(&mut self, mut small: SmallFile, done: Done) {
        let outcome = match done {
            Done::Opened(Ok((file, _))) => {
                small.file = Some(file);
                Ok(())
            }
            Done::Opened(Err(error)) => Err(error),
            Done::SmallWritten(result) | Done::Synced(result) => result,
            other => panic!("{other:?} answers the writing of {}", small.path.display()),
        };
        if let (Ok(()), Some(file)) = (&outcome, small.file) {
            let rows = std::mem::take(&mut small.rows);
            if !rows.is_empty() {
                let id = self.flights.insert(Flight::SmallFile(small));
                self.out.push_back(Op::WriteSmall { id, file, rows });
                return;
            }
            if std::mem::take(&mut small.needs_sync) {
                let id = self.flights.insert(Flight::SmallFile(small));
                self.out.push_back(Op::Sync { id, file });
                return;
            }
        }
        if let Some(file) = small.file {
            self.out.push_back(Op::CloseFile { file });
        }
        if let Err(error) = outcome {
            tracing::warn!(path = %small.path.display(), %error, "not written");
        }
    }
}
