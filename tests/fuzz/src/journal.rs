//! The journal of what is on disk, after a tear, rot, or a foreign hand.

use std::path::PathBuf;

use ringseed_engine::store::RecoveredState;
use ringseed_engine::store::journal::{
    JournalError, JournalSlot, JournalWriter, ListingKey, Recovered, replay,
};

use crate::source::{Source, damage};

/// What a replay believes is what was believed after some beginning of the records: nothing that came
/// later, nothing that never was, and never a piece that was given up in between.
pub fn run(data: &[u8]) {
    if let Ok(recovered) = replay(data) {
        go_on(recovered);
    }
    let mut source = Source::new(data);
    let generation = [1, 0, u64::from(u32::MAX), u64::MAX][source.below(4)];
    let mut writer = JournalWriter::new(generation);
    let (_, mut file) = writer.take_pending().expect("a header");
    // What is believed behind each record, the header counted as none.
    let mut beliefs = vec![replay(&file).expect("its own header")];
    let mut records: Vec<std::ops::Range<usize>> = Vec::new();
    let mut slots: Vec<JournalSlot> = Vec::new();
    for _ in 0..source.below(12) {
        write(&mut source, &mut writer, &mut slots);
        let Some((at, bytes)) = writer.take_pending() else { continue };
        assert_eq!(at, file.len() as u64);
        file.extend_from_slice(&bytes);
        records.push(at as usize..file.len());
        beliefs.push(replay(&file).expect("its own header"));
        assert_eq!(beliefs[beliefs.len() - 1].torn_bytes, 0, "our own records are whole");
    }
    match source.below(4) {
        0 => {
            damage(&mut source, &mut file);
        }
        1 if !records.is_empty() => {
            // A record twice, in another place, or gone: sectors that were written late or never.
            let (one, other) = (source.below(records.len()), source.below(records.len()));
            let (one, other) = (records[one].clone(), records[other].clone());
            match source.below(3) {
                0 => drop(file.drain(one)),
                1 => {
                    let copy = file[one].to_vec();
                    file.splice(other.start..other.start, copy);
                }
                _ => {
                    let copy = file[one].to_vec();
                    file.splice(other, copy);
                }
            }
        }
        2 => {
            // Zeros, as behind the end of a file whose room was taken ahead.
            let torn = source.below(64).min(file.len());
            let end = file.len() - torn;
            file[end..].fill(0);
            file.resize(file.len() + source.below(200), 0);
        }
        _ => {
            // What an older generation left behind on the same sectors.
            let mut older = JournalWriter::new(generation.wrapping_sub(1));
            older.take_pending();
            write(&mut source, &mut older, &mut Vec::new());
            let (_, bytes) = older.take_pending().unwrap_or_default();
            file.extend_from_slice(&bytes);
        }
    }
    match replay(&file) {
        Err(JournalError::Header | JournalError::Version { .. }) => {}
        Ok(recovered) => {
            let is_same = |belief: &Recovered| {
                (belief.generation, &belief.listings) == (recovered.generation, &recovered.listings)
            };
            assert!(beliefs.iter().any(is_same), "a belief that never was: {recovered:?}");
            go_on(recovered);
        }
    }
}

/// Starts again from what was recovered: the checkpoint says the same.
fn go_on(recovered: Recovered) {
    let wanted = recovered.listings.clone();
    for listing in wanted.values() {
        let pieces = listing.have.iter().chain(listing.suspect.iter());
        assert!(pieces.take(1 << 12).all(|piece| piece < listing.piece_count), "a piece too many");
    }
    let (_, checkpoint) = RecoveredState::begin(recovered);
    let again = replay(&checkpoint).expect("its own checkpoint");
    assert_eq!(again.torn_bytes, 0);
    assert_eq!(again.listings, wanted, "a checkpoint says something else");
}

fn write(source: &mut Source<'_>, writer: &mut JournalWriter, slots: &mut Vec<JournalSlot>) {
    let slot = slots.get(source.below(slots.len().max(1))).copied().unwrap_or_default();
    let runs = |source: &mut Source<'_>| -> Vec<(u32, u32)> {
        let count = if source.byte() == 0x80 { 70 } else { source.below(4) };
        (0..count).map(|_| (source.below(40) as u32, source.below(20) as u32)).collect()
    };
    match source.below(8) {
        0 | 1 => {
            let n = source.below(4) as u8;
            let key = if n == 3 { ListingKey::V1([n; 20]) } else { ListingKey::V2([n; 32]) };
            let folder = PathBuf::from(String::from_utf8_lossy(source.bytes(20)).into_owned());
            slots.push(writer.added(key, source.u64(), 40, source.flag(), folder));
        }
        2 => writer.intent(slot, runs(source)),
        3 | 4 => writer.have(slot, runs(source)),
        5 => writer.lost(slot, runs(source)),
        6 => writer.removed(slot),
        _ => writer.clean_stop(),
    }
}
