//! What a parser says of a torrent, and libtorrent's parser on a pipe.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use libtest_mimic::Failed;
use ringseed_core::metainfo::{Metainfo, MetainfoError};

const PARSER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/interop/differential/libtorrent_parser.py");

/// What a parser says.
#[derive(Clone, Debug)]
pub enum Verdict {
    Taken(Facts),
    Refused(Refusal),
}

/// What a parser makes of a torrent that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub v1: Option<String>,
    pub v2: Option<String>,
    pub piece_len: u64,
    pub piece_count: u64,
    /// Without pads and links.
    pub files: Vec<File>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Place in torrent space. Of an empty file always 0: it lies nowhere, and pads may be counted in front of it or
    /// behind it (BEP 52, piece length: each file that is not empty is aligned).
    pub offset: u64,
    pub len: u64,
    pub executable: bool,
    pub path: Vec<u8>,
}

/// Why a torrent is refused.
#[derive(Clone, Debug)]
pub enum Refusal {
    Ours(MetainfoError),
    Theirs(String),
}

impl Verdict {
    /// The same verdict; if both take it, the same hashes and files.
    pub fn agrees_with(&self, other: &Verdict) -> bool {
        match (self, other) {
            (Verdict::Taken(a), Verdict::Taken(b)) => a == b,
            (Verdict::Refused(_), Verdict::Refused(_)) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Refused(Refusal::Ours(error)) => write!(f, "refused: {error}"),
            Verdict::Refused(Refusal::Theirs(text)) => write!(f, "refused: {text}"),
            Verdict::Taken(facts) => {
                let Facts { v1, v2, piece_len, piece_count, files } = facts;
                write!(f, "v1 {v1:?} v2 {v2:?}, {piece_count} pieces of {piece_len};")?;
                for file in files {
                    let File { offset, len, executable, path } = file;
                    write!(
                        f,
                        " {offset}+{len}{} {:?}",
                        if *executable { "x" } else { "" },
                        path.escape_ascii().to_string()
                    )?;
                }
                Ok(())
            }
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Our parser's verdict.
pub fn ours(bytes: &[u8]) -> Verdict {
    let metainfo = match Metainfo::parse(bytes) {
        Ok(metainfo) => metainfo,
        Err(error) => return Verdict::Refused(Refusal::Ours(error)),
    };
    let info = metainfo.info();
    let geometry = info.geometry();
    let files = info.files().filter(|file| !file.pad).map(|file| File {
        offset: if file.len_bytes > 0 { geometry.file_offset(file.index()) } else { 0 },
        len: file.len_bytes,
        executable: file.executable,
        path: file.path().as_str().as_bytes().to_vec(),
    });
    Verdict::Taken(Facts {
        v1: info.info_hash_v1().map(|hash| hex(&hash)),
        v2: info.info_hash_v2().map(|hash| hex(&hash)),
        piece_len: u64::from(info.piece_len_bytes()),
        piece_count: u64::from(geometry.piece_count()),
        files: files.collect(),
    })
}

/// A Python process that runs libtorrent's parser, ended with its owner.
pub struct Parser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Parser {
    pub fn start() -> Result<Self, Failed> {
        let (child, to, from) = python("parse")?;
        Ok(Self { child, to, from })
    }

    /// The verdicts on torrents, in order.
    pub fn ask<'a>(
        &mut self,
        torrents: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Verdict>, Failed> {
        let count = torrents.len();
        let mut batch = (count as u32).to_be_bytes().to_vec();
        for torrent in torrents {
            batch.extend((torrent.len() as u32).to_be_bytes());
            batch.extend(torrent);
        }
        self.to.write_all(&batch)?;
        self.to.flush()?;
        let mut verdicts = Vec::with_capacity(count);
        for _ in 0..count {
            let mut line = String::new();
            if self.from.read_line(&mut line)? == 0 {
                return Err(
                    format!("libtorrent's process is gone: {:?}", self.child.wait()?).into()
                );
            }
            verdicts.push(
                theirs(line.trim_end_matches('\n'))
                    .ok_or_else(|| format!("strange answer {line:?}"))?,
            );
        }
        Ok(verdicts)
    }
}

impl Drop for Parser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the helper in one of its modes.
pub fn python(mode: &str) -> Result<(Child, ChildStdin, BufReader<ChildStdout>), Failed> {
    let mut child = Command::new("python3")
        .args(["-W", "ignore", PARSER, mode])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let to = child.stdin.take().ok_or("no pipe to python")?;
    let from = BufReader::new(child.stdout.take().ok_or("no pipe from python")?);
    Ok((child, to, from))
}

fn theirs(line: &str) -> Option<Verdict> {
    if let Some(message) = line.strip_prefix("no ") {
        return Some(Verdict::Refused(Refusal::Theirs(message.to_owned())));
    }
    let mut parts = line.strip_prefix("ok ")?.split('\t');
    let head: Vec<&str> = parts.next()?.split(' ').collect();
    let [v1, v2, piece_len, piece_count] = head[..] else { return None };
    let hash = |text: &str| (text != "-").then(|| text.to_owned());
    let files = parts.map(|part| {
        let fields: Vec<&str> = part.split(' ').collect();
        let [offset, len, executable, path] = fields[..] else { return None };
        let byte = |at: usize| u8::from_str_radix(path.get(at..at + 2)?, 16).ok();
        let len = len.parse().ok()?;
        let offset: u64 = offset.parse().ok()?;
        Some(File {
            offset: if len > 0 { offset } else { 0 },
            len,
            executable: executable == "1",
            path: (0..path.len()).step_by(2).map(byte).collect::<Option<_>>()?,
        })
    });
    Some(Verdict::Taken(Facts {
        v1: hash(v1),
        v2: hash(v2),
        piece_len: piece_len.parse().ok()?,
        piece_count: piece_count.parse().ok()?,
        files: files.collect::<Option<_>>()?,
    }))
}
