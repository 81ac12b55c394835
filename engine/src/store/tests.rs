//! The journal's files against a model: however logs are closed, checkpoints made, files torn or
//! rotten, a start believes what was recorded and nothing else.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use proptest::prelude::*;

use super::files::{Compacted, Found, JournalFiles, build_checkpoint, find, name_of};
use super::journal::{JournalSlot, JournalWriter, ListingKey};
use super::*;

/// A folder in memory; counts what is read of it.
#[derive(Clone, Default)]
struct Folder {
    files: BTreeMap<String, Vec<u8>>,
    read: RefCell<BTreeSet<String>>,
}

impl JournalFiles for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        self.read.borrow_mut().insert(name.to_owned());
        Ok(Box::new(&self.files[name][..]))
    }
}

impl Folder {
    fn start(&mut self) -> (JournalWriter, Recovered) {
        self.read.borrow_mut().clear();
        let found: Found = find(self).unwrap().unwrap();
        for name in &found.damaged {
            self.files.remove(name);
        }
        let name = name_of(FileKind::Log, found.generation);
        let (state, header) = RecoveredState::begin(found);
        assert!(self.files.insert(name, header).is_none(), "a log is begun twice");
        (state.writer, state.recovered)
    }

    fn state(&self) -> Recovered {
        find(self).unwrap().unwrap().recovered
    }

    fn flush(&mut self, writer: &mut JournalWriter) {
        let name = name_of(FileKind::Log, writer.generation());
        let log = self.files.entry(name).or_default();
        if let Some((at, bytes)) = writer.take_pending() {
            assert_eq!(at as usize, log.len(), "records go behind each other");
            log.extend_from_slice(&bytes);
        }
    }

    /// What [`files::compact`] does.
    fn checkpoint(&mut self, writer: &JournalWriter) -> Compacted {
        let (generation, mut bytes) = (writer.generation(), Vec::new());
        let compacted = build_checkpoint(self, generation, writer.log_start(), &mut bytes).unwrap();
        assert_eq!(compacted.len_bytes, bytes.len() as u64);
        self.files.insert(name_of(FileKind::Checkpoint, generation), bytes);
        for old in &compacted.superfluous {
            self.files.remove(old).unwrap();
        }
        compacted
    }

    fn newest(&self, kind: &str) -> Option<String> {
        self.files.keys().rfind(|name| name.starts_with(kind)).cloned()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Have(u8, u32, u32),
    Lost(u8, u32, u32),
    Remove(u8),
    CloseLog,
    Checkpoint,
    Restart,
    /// The newest checkpoint rots at a position.
    RotCheckpoint(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    let listing = 0_u8..4;
    prop_oneof![
        2 => listing.clone().prop_map(Step::Add),
        8 => (listing.clone(), 0_u32..60, 1_u32..5).prop_map(|(of, first, count)| Step::Have(of, first, count)),
        3 => (listing.clone(), 0_u32..60, 1_u32..5).prop_map(|(of, first, count)| Step::Lost(of, first, count)),
        1 => listing.prop_map(Step::Remove),
        2 => Just(Step::CloseLog),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Restart),
        1 => any::<u32>().prop_map(Step::RotCheckpoint),
    ]
}

proptest! {
    /// At every moment a start would find exactly what was recorded; at most two checkpoints and the
    /// logs behind the older one are kept, and of the newest checkpoint one byte may be wrong.
    #[test]
    fn a_start_finds_what_was_recorded(steps in proptest::collection::vec(any_step(), 1..80)) {
        let mut folder = Folder::default();
        let (mut writer, _) = folder.start();
        let mut model: BTreeMap<u8, (JournalSlot, BTreeSet<u32>)> = BTreeMap::new();
        let (mut is_due, mut is_rotten, mut rots) = (false, false, 0);
        for step in steps {
            match step {
                Step::Add(of) if !model.contains_key(&of) => {
                    let folder = format!("/data/{}", of % 2).into();
                    let slot = writer.added(ListingKey::V2([of; 32]), 1 << 20, 64, true, folder);
                    model.insert(of, (slot, BTreeSet::new()));
                }
                Step::Have(of, first, count) => {
                    if let Some((slot, have)) = model.get_mut(&of) {
                        writer.have(*slot, [(first, count)]);
                        have.extend(first..first + count);
                    }
                }
                Step::Lost(of, first, count) => {
                    if let Some((slot, have)) = model.get_mut(&of) {
                        writer.lost(*slot, [(first, count)]);
                        have.retain(|piece| !(first..first + count).contains(piece));
                    }
                }
                Step::Remove(of) => {
                    if let Some((slot, _)) = model.remove(&of) {
                        writer.removed(slot);
                    }
                }
                Step::CloseLog if !is_due => {
                    folder.flush(&mut writer);
                    writer.begin_log(writer.generation() + 1);
                    is_due = true;
                }
                Step::Checkpoint if is_due => {
                    folder.flush(&mut writer);
                    folder.checkpoint(&writer);
                    (is_due, is_rotten) = (false, false);
                }
                Step::Restart => {
                    folder.flush(&mut writer);
                    let (next, _) = folder.start();
                    (writer, is_due) = (next, false);
                }
                Step::RotCheckpoint(at) if !is_rotten => {
                    let Some(name) = folder.newest("checkpoint") else { continue };
                    let bytes = folder.files.get_mut(&name).unwrap();
                    let at = at as usize % bytes.len();
                    bytes[at] ^= 0x20;
                    (is_rotten, rots) = (true, rots + 1);
                }
                _ => continue,
            }
            folder.flush(&mut writer);
            let found: BTreeMap<ListingKey, BTreeSet<u32>> =
                folder.state().listings.iter().map(|(key, it)| (*key, it.have.iter().collect())).collect();
            let wanted: BTreeMap<ListingKey, BTreeSet<u32>> =
                model.iter().map(|(of, (_, have))| (ListingKey::V2([*of; 32]), have.clone())).collect();
            prop_assert_eq!(found, wanted);
            let checkpoints = folder.files.keys().filter(|name| name.starts_with("checkpoint")).count();
            // A rotten one stays as long as the one before it is needed in its place.
            prop_assert!(checkpoints <= 2 + rots, "{:?}", folder.files.keys());
        }
    }
}

/// A journal of three logs and two checkpoints, and every piece it ever said was had.
fn sample() -> (Folder, BTreeSet<u32>) {
    let mut folder = Folder::default();
    let (mut writer, _) = folder.start();
    let slot = writer.added(ListingKey::V2([7; 32]), 1 << 20, 64, true, "/data".into());
    let mut ever = BTreeSet::new();
    for round in 0..3_u32 {
        for at in 0..4 {
            writer.intent(slot, [(round * 10 + at, 1)]);
            writer.have(slot, [(round * 10 + at, 1)]);
            ever.insert(round * 10 + at);
        }
        writer.lost(slot, [(round * 10, 1)]);
        folder.flush(&mut writer);
        if round < 2 {
            writer.begin_log(writer.generation() + 1);
            folder.flush(&mut writer);
            folder.checkpoint(&writer);
        }
    }
    (folder, ever)
}

/// One wrong byte anywhere, or a file cut anywhere: a start neither panics nor believes a piece that
/// was never had, and the other files still lead to most of the state.
#[test]
fn no_damage_makes_a_start_believe_what_was_never_recorded() {
    let (folder, ever) = sample();
    let whole = folder.state();
    assert_eq!(whole.listings[&ListingKey::V2([7; 32])].have.count(), 9);
    for (name, bytes) in &folder.files {
        for at in 0..bytes.len() {
            for cut in [false, true] {
                let mut damaged = folder.clone();
                let file = damaged.files.get_mut(name).unwrap();
                if cut {
                    file.truncate(at)
                } else {
                    file[at] ^= 0x10
                }
                let found = damaged.state();
                for listing in found.listings.values() {
                    assert!(
                        listing.have.iter().all(|piece| ever.contains(&piece)),
                        "{name} at {at}"
                    );
                }
                // The newest checkpoint has a substitute, and the older one is not asked at all.
                if name.starts_with("checkpoint") {
                    assert_eq!(found, whole, "{name} at {at}");
                }
                damaged.start();
            }
        }
    }
}

/// What a start reads is the newest checkpoint and the logs behind it, however long the engine ran.
#[test]
fn a_start_reads_the_newest_checkpoint_and_what_follows_it() {
    let (mut folder, _) = sample();
    folder.start();
    let read: Vec<String> = folder.read.borrow().iter().cloned().collect();
    assert_eq!(read, [name_of(FileKind::Checkpoint, 3), name_of(FileKind::Log, 3),]);
}

/// A start that saw a damaged log goes on where its good records end. The logs that came after the
/// damage before do not fit there, and must not hide what was recorded since.
#[test]
fn what_is_recorded_after_a_damaged_log_counts() {
    let mut folder = Folder::default();
    let (mut writer, _) = folder.start();
    let slot = writer.added(ListingKey::V2([7; 32]), 1 << 20, 64, true, "/data".into());
    (0..5).for_each(|piece| writer.have(slot, [(piece, 1)]));
    folder.flush(&mut writer);
    let (mut writer, _) = folder.start();
    writer.have(slot, [(9, 1)]);
    folder.flush(&mut writer);
    let log = folder.files.get_mut(&name_of(FileKind::Log, 1)).unwrap();
    let at = log.len() - 40;
    log[at] ^= 1;
    let (mut writer, found) = folder.start();
    assert!(!found.listings[&ListingKey::V2([7; 32])].have.contains(9));
    writer.have(slot, [(11, 1)]);
    folder.flush(&mut writer);
    let found = folder.state();
    let have = &found.listings[&ListingKey::V2([7; 32])].have;
    assert!(have.contains(11) && !have.contains(9) && have.contains(0));
}

/// A file as version 1 wrote it is read, goes on, and is gone once there is a checkpoint.
#[test]
fn the_one_file_of_version_1_is_taken_over() {
    let mut folder = Folder::default();
    let mut v1 = b"ringseed\x01\0\0\0\x05\0\0\0\0\0\0\0".to_vec();
    v1.extend_from_slice(&crc32fast::hash(&v1).to_le_bytes());
    let mut put = |record: &journal::Record, sequence: u64| {
        record::encode_record(record, 5, sequence, &mut v1);
    };
    let key = ListingKey::V1([3; 20]);
    put(
        &journal::Record::Added {
            slot: 0,
            key,
            total_len: 1 << 20,
            piece_count: 64,
            both_views: false,
            folder: "/data".into(),
        },
        0,
    );
    put(&journal::Record::Have { slot: 0, runs: vec![(0, 5)] }, 1);
    v1.resize(v1.len() + 1000, 0);
    folder.files.insert(files::V1_NAME.to_owned(), v1);
    let (mut writer, found) = folder.start();
    assert_eq!(found.listings[&key].have.count(), 5);
    writer.have(found.listings[&key].slot, [(5, 5)]);
    folder.flush(&mut writer);
    assert_eq!(folder.state().listings[&key].have.count(), 10);
    for _ in 0..2 {
        writer.begin_log(writer.generation() + 1);
        folder.flush(&mut writer);
        folder.checkpoint(&writer);
    }
    assert!(!folder.files.contains_key(files::V1_NAME));
    assert_eq!(folder.state().listings[&key].have.count(), 10);
}

/// Nothing can be read: everything is checked again, and what is recorded from then on counts.
#[test]
fn a_journal_without_a_way_in_is_set_aside() {
    let (mut folder, _) = sample();
    folder.files.retain(|name, _| name.starts_with("log"));
    folder.files.remove(&name_of(FileKind::Log, 1));
    let found = find(&folder).unwrap().unwrap();
    assert!(found.recovered.listings.is_empty() && !found.damaged.is_empty());
    folder.start();
    assert!(find(&folder).unwrap().unwrap().damaged.is_empty());
}

/// A journal of a later program is left alone.
#[test]
fn a_later_version_is_refused() {
    let (mut folder, _) = sample();
    let name = folder.newest("checkpoint").unwrap();
    let header = folder.files.get_mut(&name).unwrap();
    header[8] = 3;
    let crc = crc32fast::hash(&header[..32]);
    header[32..36].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(find(&folder).unwrap(), Err(journal::JournalError::Version { found: 3 })));
}

/// The same on a real folder, as the engine does it.
#[test]
fn checkpoints_are_made_in_a_real_folder() {
    let dir = crate::test_support::TestDir::new("journal");
    let path = dir.path().join("state");
    let mut slot = None;
    for round in 0..4_u32 {
        let (state, mut found) = open_state_dir(&path, false).unwrap();
        let key = ListingKey::V2([1; 32]);
        let known = found.recovered.listings.get(&key);
        assert_eq!(known.map_or(0, |it| it.have.count()), round * 2);
        let put = |bytes: Option<(u64, Vec<u8>)>, generation: u64| {
            use std::os::unix::fs::FileExt as _;
            let name = path.join(name_of(FileKind::Log, generation));
            let file = std::fs::File::options().create(true).write(true).truncate(false).open(name);
            let (at, bytes) = bytes.unwrap();
            file.unwrap().write_all_at(&bytes, at).unwrap();
        };
        let writer = &mut found.writer;
        let slot = *slot.get_or_insert_with(|| writer.added(key, 1 << 20, 64, true, "/d".into()));
        writer.have(slot, [(round * 2, 1)]);
        put(writer.take_pending(), writer.generation());
        writer.begin_log(writer.generation() + 1);
        writer.have(slot, [(round * 2 + 1, 1)]);
        put(writer.take_pending(), writer.generation());
        let len_bytes =
            files::compact(state.dir(), writer.generation(), writer.log_start()).unwrap();
        assert!(len_bytes > 0);
        let names = state.dir().names().unwrap();
        let of = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
        assert!(of("checkpoint") <= 2 && of("log") <= 4, "{names:?}");
        assert!(names.iter().all(|name| !name.ends_with(".new")));
    }
}

/// Found by fuzzing: a stray file with the highest number that a name can hold left no number for the next
/// log, and the start ended in an overflow.
#[test]
fn a_file_of_the_last_generation_is_none_of_ours() {
    let mut folder = Folder::default();
    let (writer, _) = folder.start();
    let before = writer.generation();
    for stray in [u64::MAX, u64::MAX - 1] {
        folder.files.insert(name_of(FileKind::Log, stray), b"stray".to_vec());
        folder.files.insert(name_of(FileKind::Checkpoint, stray), b"stray".to_vec());
    }
    let (writer, _) = folder.start();
    assert_eq!(writer.generation(), before + 1);
    assert_eq!(folder.files.len(), 6, "what is not ours stays");
}
