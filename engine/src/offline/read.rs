//! How bytes get from files to lanes: by the ring, by plain calls, or by a map. What hashes knows
//! only [`Reads`], so a test can bring the bytes itself, in any order, and see what was asked for.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ringseed_sys::arena::{Arena, ExtentMut};
use ringseed_sys::checked_map::CheckedMap;
use ringseed_sys::dir::{DirHandle, FileOptions};
use ringseed_sys::file::DataFile;
use ringseed_sys::ring::{Outcome, Ring, Task};

/// Files shorter than this are read through the page cache even in [`IoMode::Auto`]: opening a file
/// a second time for O_DIRECT costs more than a short read gains.
const DIRECT_LEN_MIN: u64 = 128 << 10;

/// Which way payload is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// What the page cache holds comes from there, the rest past it by O_DIRECT.
    #[default]
    Auto,
    /// All of it by O_DIRECT, whatever the page cache holds: what the device has.
    Direct,
    /// All of it through the page cache.
    Buffered,
    /// Mapped: hashed where the page cache has it, without a copy.
    Mmap,
}

impl IoMode {
    /// All of them, by their names on a command line.
    pub const NAMES: [&'static str; 4] = ["auto", "direct", "buffered", "mmap"];
}

impl FromStr for IoMode {
    type Err = ();

    fn from_str(name: &str) -> Result<IoMode, ()> {
        Ok(match name {
            "auto" => IoMode::Auto,
            "direct" => IoMode::Direct,
            "buffered" => IoMode::Buffered,
            "mmap" => IoMode::Mmap,
            _ => return Err(()),
        })
    }
}

/// In which order reads are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOrder {
    /// As the device wants it: [`ReadOrder::FileOrder`] on one that moves heads.
    #[default]
    Auto,
    /// As asked, many at once: offline every lane reads ahead in a piece of its own.
    Spread,
    /// In the order of the files: offline in one stream.
    FileOrder,
}

/// How files are read. The default suits every machine.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Which way.
    pub io: IoMode,
    /// In which order.
    pub order: ReadOrder,
    /// Threads that read and hash; `None`: one per core, a single one on a device that moves heads.
    pub threads: Option<usize>,
    /// Whether io_uring may be used, where the kernel allows it.
    pub ring: bool,
    /// Set from outside to stop: what is under way ends with [`super::OfflineError::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            io: IoMode::Auto,
            order: ReadOrder::Auto,
            threads: None,
            ring: true,
            stop: Arc::default(),
        }
    }
}

/// A file opened for reading, in the way that was asked for.
#[derive(Debug)]
pub(super) struct OpenFile {
    way: Way,
    /// Length when it was opened, bytes.
    pub len_bytes: u64,
}

#[derive(Debug)]
enum Way {
    Data(Arc<DataFile>),
    Map(Arc<CheckedMap>),
    /// Nothing to map.
    Empty,
}

impl OpenFile {
    /// Opens `rel` beneath `root`.
    pub(super) fn open(root: &DirHandle, rel: &Path, io: IoMode) -> io::Result<OpenFile> {
        if io == IoMode::Mmap {
            let file = File::from(root.open_file(rel, FileOptions::default())?);
            let len_bytes = file.metadata()?.len();
            let way = match len_bytes {
                0 => Way::Empty,
                _ => Way::Map(Arc::new(CheckedMap::new(file.as_fd())?)),
            };
            return Ok(OpenFile { way, len_bytes });
        }
        let mut opened = DataFile::open(root, rel, false, io == IoMode::Direct)?;
        if io == IoMode::Auto && opened.len_bytes >= DIRECT_LEN_MIN {
            opened = DataFile::open(root, rel, false, true)?;
        }
        let file = match io {
            IoMode::Direct => opened.file.past_cache(),
            _ => opened.file,
        };
        Ok(OpenFile { way: Way::Data(Arc::new(file)), len_bytes: opened.len_bytes })
    }

    /// Whether reading that range waits for no device, as far as the kernel can tell.
    pub(super) fn is_resident(&self, offset_bytes: u64, len: usize) -> bool {
        match &self.way {
            Way::Data(file) => file.is_resident(offset_bytes, len),
            Way::Map(_) | Way::Empty => false,
        }
    }
}

/// Bytes that were read.
#[derive(Debug)]
pub(super) enum Bytes {
    /// In a lent extent, which goes back when this is dropped.
    Lent { buf: ExtentMut, start: usize, len: usize },
    /// In a map.
    Mapped { map: Arc<CheckedMap>, offset: usize, len: usize },
}

impl Bytes {
    /// False when what was seen may not have been the file: asked after the last look.
    pub(super) fn is_intact(&self) -> bool {
        match self {
            Bytes::Lent { .. } => true,
            Bytes::Mapped { map, .. } => map.is_intact(),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Lent { buf, start, len } => &buf[*start..*start + *len],
            Bytes::Mapped { map, offset, len } => map.bytes(*offset, *len),
        }
    }
}

/// One read that has ended: fewer bytes than asked for only at the end of the file.
#[derive(Debug)]
pub(super) struct Arrived {
    pub token: u64,
    pub result: io::Result<Bytes>,
}

/// What shall be read: `len` bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub token: u64,
    pub offset_bytes: u64,
    pub len: usize,
    /// Where in the buffer the first byte goes.
    pub start: usize,
}

/// Starts reads and brings what they read, in any order.
pub(super) trait Reads {
    /// Whether a read needs an extent to read into.
    fn needs_buffer(&self) -> bool;
    /// Reads from a device are to come: the time to prepare what only they earn back.
    fn expect_device(&mut self) {}
    /// Starts a read. Nothing need happen before [`Reads::submit`] or [`Reads::wait`].
    fn start(&mut self, file: &OpenFile, wanted: Wanted, buf: Option<ExtentMut>);
    /// Hands what was started to whoever reads.
    ///
    /// # Errors
    /// The machinery itself is broken.
    fn submit(&mut self) -> io::Result<()>;
    /// As [`Reads::submit`], and waits until a read has ended.
    ///
    /// # Errors
    /// The machinery itself is broken.
    fn wait(&mut self) -> io::Result<()>;
    /// The next read that has ended.
    fn next_arrived(&mut self) -> Option<Arrived>;
    /// Reads that have not ended.
    fn in_flight(&self) -> usize;
}

/// Reads by io_uring, many at once.
pub(super) struct RingReads {
    ring: Ring,
    /// What is registered when the first read from a device is expected.
    to_register: Option<Arena>,
    /// Where each read in flight begins in its extent, by token.
    starts: VecDeque<(u64, usize)>,
}

impl RingReads {
    /// `None` where io_uring is not to be had. With `register`, the arena's memory is registered as
    /// far as the machine allows before the first read from a device, so that such reads need not pin
    /// it each time.
    pub(super) fn new(entries: u32, arena: &Arena, register: bool) -> Option<RingReads> {
        let ring = Ring::new(entries).ok()?;
        let to_register = register.then(|| arena.clone());
        Some(RingReads { ring, to_register, starts: VecDeque::new() })
    }
}

impl Reads for RingReads {
    fn needs_buffer(&self) -> bool {
        true
    }

    fn expect_device(&mut self) {
        if let Some(arena) = self.to_register.take() {
            self.ring.register_arena(&arena, usize::MAX);
        }
    }

    fn start(&mut self, file: &OpenFile, wanted: Wanted, buf: Option<ExtentMut>) {
        let (Way::Data(file), Some(buf)) = (&file.way, buf) else {
            unreachable!("a ring reads opened files into extents")
        };
        let Wanted { token, offset_bytes, len, start } = wanted;
        self.starts.push_back((token, start));
        self.ring.start(token, Task::Read { file: file.clone(), offset_bytes, buf, start, len });
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.wait(Some(Instant::now()))
    }

    fn wait(&mut self) -> io::Result<()> {
        self.ring.wait(None)
    }

    fn next_arrived(&mut self) -> Option<Arrived> {
        let finished = self.ring.next_finished()?;
        let Outcome::Read(result, buf) = finished.outcome else {
            unreachable!("nothing but reads is started")
        };
        let token = finished.token;
        // Reads end about in the order they were started, so the search is short.
        let at = self.starts.iter().position(|&(of, _)| of == token).expect("it was started");
        let (_, start) = self.starts.remove(at).expect("just found");
        Some(Arrived { token, result: result.map(|(len, _)| Bytes::Lent { buf, start, len }) })
    }

    fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }
}

/// Reads by plain calls, each when it is started: where io_uring is forbidden. More threads than cores
/// keep the device busy.
#[derive(Default)]
pub(super) struct PlainReads {
    arrived: VecDeque<Arrived>,
}

impl Reads for PlainReads {
    fn needs_buffer(&self) -> bool {
        true
    }

    fn start(&mut self, file: &OpenFile, wanted: Wanted, buf: Option<ExtentMut>) {
        let (Way::Data(file), Some(mut buf)) = (&file.way, buf) else {
            unreachable!("plain calls read opened files into extents")
        };
        let Wanted { token, offset_bytes, len, start } = wanted;
        let result = file.read(offset_bytes, &mut buf, start, len);
        let result = result.map(|(len, _)| Bytes::Lent { buf, start, len });
        self.arrived.push_back(Arrived { token, result });
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn next_arrived(&mut self) -> Option<Arrived> {
        self.arrived.pop_front()
    }

    fn in_flight(&self) -> usize {
        0
    }
}

/// Hands out ranges of maps, after asking the kernel for their pages.
#[derive(Default)]
pub(super) struct MappedReads {
    arrived: VecDeque<Arrived>,
}

impl Reads for MappedReads {
    fn needs_buffer(&self) -> bool {
        false
    }

    fn start(&mut self, file: &OpenFile, wanted: Wanted, _buf: Option<ExtentMut>) {
        let Wanted { token, offset_bytes, len, .. } = wanted;
        let offset = usize::try_from(offset_bytes).unwrap_or(usize::MAX);
        let result = match &file.way {
            Way::Map(map) if offset < map.len_bytes() => {
                let len = len.min(map.len_bytes() - offset);
                let map = map.clone();
                map.populate(offset, len).map(|()| Bytes::Mapped { map, offset, len })
            }
            // As a read behind the end of a file.
            Way::Map(_) | Way::Empty => Err(io::ErrorKind::UnexpectedEof.into()),
            Way::Data(_) => unreachable!("maps are handed out of maps"),
        };
        self.arrived.push_back(Arrived { token, result });
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn next_arrived(&mut self) -> Option<Arrived> {
        self.arrived.pop_front()
    }

    fn in_flight(&self) -> usize {
        0
    }
}
