//! The journal of what is on disk, after a tear, rot, a lost file, or a foreign hand.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use ringseed_engine::store::files::{Found, JournalFiles, build_checkpoint, find, name_of};
use ringseed_engine::store::journal::{JournalSlot, JournalWriter, ListingKey, Stamp};
use ringseed_engine::store::{FileKind, Recovered, RecoveredState};

use crate::source::{Source, damage};

/// A folder in memory.
#[derive(Clone, Default)]
struct Folder(BTreeMap<String, Vec<u8>>);

impl JournalFiles for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + '_>> {
        let bytes = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(bytes.as_slice()))
    }
}

impl Folder {
    fn find(&self) -> Option<Found> {
        find(self).expect("memory can be read").ok()
    }

    fn append(&mut self, generation: u64, bytes: &[u8]) {
        self.0.entry(name_of(FileKind::Log, generation)).or_default().extend_from_slice(bytes);
    }
}

/// What a start believes is what was believed after some beginning of the records: nothing that came
/// later, nothing that never was, and never a piece that was given up in between.
pub fn run(data: &[u8]) {
    for name in [name_of(FileKind::Log, 0), name_of(FileKind::Checkpoint, 3), "journal".into()] {
        let folder = Folder([(name, data.to_vec())].into());
        if let Some(found) = folder.find() {
            go_on(&folder, found);
        }
    }
    let mut source = Source::new(data);
    let mut folder = Folder::default();
    let first = [1, 0, u64::from(u32::MAX), 1 << 62][source.below(4)];
    let mut writer = JournalWriter::new(first, 0, 0);
    let mut beliefs = vec![Recovered::default()];
    // Where each record stands: its file, and its place there.
    let mut records: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    let mut slots: Vec<(JournalSlot, usize)> = Vec::new();
    for _ in 0..source.below(14) {
        let (generation, before) = (writer.generation(), writer.log_len());
        if source.byte() == 0x77 {
            // The log is closed, and what it says made short.
            flush(&mut writer, &mut folder);
            let next = records.len() as u64;
            writer.begin_log(generation + 1);
            flush(&mut writer, &mut folder);
            let mut checkpoint = Vec::new();
            let made = build_checkpoint(&folder, generation + 1, next, &mut checkpoint);
            let made = made.expect("closed logs are whole");
            folder.0.insert(name_of(FileKind::Checkpoint, generation + 1), checkpoint);
            if source.flag() {
                made.superfluous.iter().for_each(|name| drop(folder.0.remove(name)));
            }
            continue;
        }
        if !write(&mut source, &mut writer, &mut slots) {
            continue;
        }
        let end = writer.log_len() as usize;
        flush(&mut writer, &mut folder);
        records.push((generation, before as usize..end));
        let found = folder.find().expect("our own records");
        assert_eq!(found.sequence, records.len() as u64, "our own records are read to the end");
        beliefs.push(found.recovered);
    }
    harm(&mut source, &mut folder, &records);
    let Some(found) = folder.find() else { return };
    let believed = &found.recovered;
    assert!(beliefs.contains(believed), "a belief that never was: {believed:?}");
    go_on(&folder, found);
}

fn flush(writer: &mut JournalWriter, folder: &mut Folder) {
    if let Some((_, bytes)) = writer.take_pending() {
        folder.append(writer.generation(), &bytes);
    }
}

/// What disks, cuts and hands do to the files.
fn harm(source: &mut Source<'_>, folder: &mut Folder, records: &[(u64, std::ops::Range<usize>)]) {
    let names: Vec<String> = folder.0.keys().cloned().collect();
    let Some(name) = names.get(source.below(names.len().max(1))) else { return };
    match source.below(6) {
        0 => drop(damage(source, folder.0.get_mut(name).expect("it is there"))),
        1 => drop(folder.0.remove(name)),
        2 if !records.is_empty() => {
            // A record twice, in another place, or gone: sectors that were written late or never.
            let (from, one) = records[source.below(records.len())].clone();
            let (to, other) = records[source.below(records.len())].clone();
            let Some(file) = folder.0.get(&name_of(FileKind::Log, from)) else { return };
            let copy = file[one.clone()].to_vec();
            let step = source.below(3);
            let at = if step == 0 { from } else { to };
            let Some(file) = folder.0.get_mut(&name_of(FileKind::Log, at)) else { return };
            match step {
                0 => drop(file.drain(one)),
                1 => drop(file.splice(other.start..other.start, copy)),
                _ => drop(file.splice(other, copy)),
            }
        }
        3 => {
            // Zeros, as behind the end of a file whose room was taken ahead.
            let file = folder.0.get_mut(name).expect("it is there");
            let end = file.len() - source.below(64).min(file.len());
            file[end..].fill(0);
            file.resize(file.len() + source.below(200), 0);
        }
        4 => {
            // One file under the name of another.
            let file = folder.0[name].clone();
            let other = &names[source.below(names.len())];
            folder.0.insert(other.clone(), file);
        }
        _ => {
            // A foreign file with right checksums: whatever it says, a start must get through it.
            let [generation, sequence] = [source.u64(), u64::from(source.edgy())];
            let mut foreign = JournalWriter::new(generation, sequence, 0);
            write(source, &mut foreign, &mut Vec::new());
            let mut alone = Folder::default();
            flush(&mut foreign, &mut alone);
            if let Some(found) = alone.find() {
                go_on(&alone, found);
            }
        }
    }
}

/// Starts again from what was found, twice: the second start believes the same.
fn go_on(folder: &Folder, found: Found) {
    for listing in found.recovered.listings.values() {
        let pieces = listing.have.iter().chain(listing.suspect.iter());
        assert!(pieces.take(1 << 12).all(|piece| piece < listing.piece_count), "a piece too many");
    }
    let (wanted, generation) = (found.recovered.clone(), found.generation);
    let mut folder = folder.clone();
    found.damaged.iter().for_each(|name| drop(folder.0.remove(name)));
    let (_, header) = RecoveredState::begin(found);
    folder.append(generation, &header);
    let again = folder.find().expect("a journal of our own");
    assert_eq!(again.recovered, wanted, "the next start believes something else");
    assert!(again.generation > generation, "a log is begun twice");
}

/// Appends one record, if there is one to append.
fn write(
    source: &mut Source<'_>,
    writer: &mut JournalWriter,
    slots: &mut Vec<(JournalSlot, usize)>,
) -> bool {
    let slot = slots.get(source.below(slots.len().max(1))).map_or(0, |&(slot, _)| slot);
    let runs = |source: &mut Source<'_>| -> Vec<(u32, u32)> {
        (0..1 + source.below(4))
            .map(|_| (source.below(30) as u32, source.below(10) as u32))
            .collect()
    };
    match source.below(9) {
        0 | 1 => {
            let which = source.below(4);
            let n = which as u8;
            let key = if n == 3 { ListingKey::V1([n; 20]) } else { ListingKey::V2([n; 32]) };
            let folder = PathBuf::from(String::from_utf8_lossy(source.bytes(20)).into_owned());
            // Of a listing that is added again the last life counts, and nobody writes of another.
            slots.retain(|&(_, of)| of != which);
            let slot = writer.added(key, source.u64(), 40, source.flag(), folder);
            slots.push((slot, which));
        }
        // A record of a listing that was never added would end the replay.
        2.. if slots.is_empty() => return false,
        2 => writer.intent(slot, runs(source)),
        3 | 4 => writer.have(slot, runs(source)),
        5 => writer.lost(slot, runs(source)),
        6 => {
            slots.retain(|&(other, _)| other != slot);
            writer.removed(slot);
        }
        7 => writer.stamped(slot, Stamp { newest_ns: 5, digest: source.byte().into() }),
        _ => writer.clean_stop(),
    }
    true
}
