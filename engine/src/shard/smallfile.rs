//! Small files of our own that are written once: fetched metainfo.
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
    data: Vec<u8>,
    file: Option<FileId>,
}

impl Shard {
    /// Writes a file in the state folder.
    pub(super) fn write_state_file(&mut self, path: PathBuf, data: Vec<u8>) {
        let root = self.state.dir().clone();
        let small = SmallFile { path: path.clone(), data, file: None };
        let id = self.flights.insert(Flight::SmallFile(small));
        self.out.push_back(Op::Open { id, root, path, mode: OpenMode::Write, direct: false });
    }

    /// A step has ended: the next one.
    pub(super) fn small_file_step(&mut self, mut small: SmallFile, done: Done) {
        let outcome = match done {
            Done::Opened(Ok((file, _))) => {
                small.file = Some(file);
                let data = std::mem::take(&mut small.data);
                let id = self.flights.insert(Flight::SmallFile(small));
                self.out.push_back(Op::WriteSmall { id, file, offset_bytes: 0, data });
                return;
            }
            Done::SmallWritten(Ok(())) if self.config.durable => {
                let file = small.file.expect("opened before it is written");
                let id = self.flights.insert(Flight::SmallFile(small));
                self.out.push_back(Op::Sync { id, file });
                return;
            }
            Done::Opened(Err(error)) => Err(error),
            Done::SmallWritten(result) | Done::Synced(result) => result,
            other => panic!("{other:?} answers the writing of {}", small.path.display()),
        };
        if let Some(file) = small.file {
            self.out.push_back(Op::CloseFile { file });
        }
        if let Err(error) = outcome {
            tracing::warn!(path = %small.path.display(), %error, "not written");
        }
    }
}
