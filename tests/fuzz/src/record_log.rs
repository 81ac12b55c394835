//! The log file of consensus after a crash, rot, or a foreign hand.

use ringseed_abci::record_log::{FRAME_LEN_BYTES, HEADER_LEN_BYTES, LogError, RecordLog};

use crate::scratch::ScratchFile;
use crate::source::{Source, damage};

const MAGIC: &[u8; 8] = b"RSFUZZED";
const PAYLOAD_LEN_MAX: u32 = 300;

/// What is read back is a beginning of what was appended; a record that rotted before a good one is
/// told and never cut off; and after opening the log takes records again.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let file = ScratchFile::new();
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    let mut starts: Vec<u64> = Vec::new();
    let mut log = open(&file, &mut Vec::new()).expect("a new log");
    for _ in 0..source.below(5) {
        let mut payload = source.bytes(PAYLOAD_LEN_MAX as usize).to_vec();
        payload.push(source.byte());
        payload.truncate(PAYLOAD_LEN_MAX as usize);
        starts.push(log.append(&payload).expect("room for a record"));
        payloads.push(payload);
    }
    let end = log.end_offset_bytes();
    drop(log);
    let mut bytes = std::fs::read(&file.0).expect("the log");
    assert_eq!(bytes.len() as u64, end);

    // One flip inside a record that has another behind it: rot, not a crash.
    let mut rotten = None;
    if source.flag() && payloads.len() > 1 {
        let record = source.below(payloads.len() - 1);
        // Past the length: with another length nobody can tell where the next record stands.
        let len = payloads[record].len() + FRAME_LEN_BYTES as usize - 4;
        bytes[starts[record] as usize + 4 + source.below(len)] ^= 1 << source.below(8);
        rotten = Some(starts[record]);
    } else {
        damage(&mut source, &mut bytes);
    }
    std::fs::write(&file.0, &bytes).expect("room for the log");

    let mut found = Vec::new();
    let opened = open(&file, &mut found);
    assert!(found.len() <= payloads.len() || opened.is_err() || source_of(&bytes, &found));
    match opened {
        Err(LogError::Damaged { offset_bytes, .. }) => {
            assert!(rotten.is_none_or(|start| start == offset_bytes));
        }
        Err(LogError::Foreign { .. }) => assert!(rotten.is_none()),
        Err(LogError::Io { source, .. }) => panic!("{source}"),
        Ok(mut log) => {
            assert!(rotten.is_none(), "a rotten record is cut off, and a good one with it");
            assert!(source_of(&bytes, &found), "a record that is not in the file");
            log.append(b"more").expect("room for a record");
            drop(log);
            let mut again = Vec::new();
            open(&file, &mut again).expect("what was opened opens again");
            found.push(b"more".to_vec());
            assert_eq!(again, found, "records change behind a restart");
        }
    }
}

fn open(file: &ScratchFile, found: &mut Vec<Vec<u8>>) -> Result<RecordLog, LogError> {
    RecordLog::open(&file.0, MAGIC, PAYLOAD_LEN_MAX, 0, |_, payload| found.push(payload.to_vec()))
}

/// Whether the records stand in the file one behind the other, with their lengths and checksums.
fn source_of(bytes: &[u8], found: &[Vec<u8>]) -> bool {
    let mut at = HEADER_LEN_BYTES as usize;
    found.iter().all(|payload| {
        let len = (payload.len() as u32).to_le_bytes();
        let mut crc = crc32fast::Hasher::new();
        crc.update(&len);
        crc.update(payload);
        let record = [&len[..], &crc.finalize().to_le_bytes()[..], payload].concat();
        let is_there = bytes.get(at..at + record.len()) == Some(&record[..]);
        at += record.len();
        is_there
    })
}
