//! Random trees on disk, made into torrents by us and by libtorrent: both info hashes are the same, and libtorrent
//! reads them from our file, too.

use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libtest_mimic::Failed;
use ringseed_core::geometry::Kind;
use ringseed_engine::offline::{CreateOptions, create};
use ringseed_tests::data::Seeded;
use ringseed_tests::scratch::Scratch;

use crate::setting;
use crate::verdict::{Parser, Verdict, hex, python};

/// Trees that `cargo test` makes; CI makes 1,000.
const TREES: u64 = 100;

struct File {
    path: String,
    bytes: Vec<u8>,
    executable: bool,
}

/// Names that every system takes and that libtorrent leaves as they are. Without characters that sort before the
/// slash: there libtorrent's order of files is not that of the tree, and it refuses the hybrids that it makes.
fn name(random: &mut Seeded) -> String {
    let letters: Vec<char> = "abcXYZ_09äß日本".chars().collect();
    let len = 1 + random.below(12);
    (0..len).map(|_| letters[random.below(letters.len() as u64) as usize]).collect()
}

fn tree(random: &mut Seeded, piece_len: u64) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    let mut folders = vec![String::new()];
    for _ in 0..1 + random.below(12) {
        if random.below(3) == 0 {
            let folder = &folders[random.below(folders.len() as u64) as usize];
            folders.push(format!("{folder}{}.d/", name(random)));
        }
        // Half of the files lie in the folder made last.
        let at = if random.below(2) == 0 {
            folders.len() as u64 - 1
        } else {
            random.below(folders.len() as u64)
        };
        let path = format!("{}{}", folders[at as usize], name(random));
        // libtorrent takes names that differ only in case for one.
        if files.iter().any(|file| file.path.to_lowercase() == path.to_lowercase()) {
            continue;
        }
        let len = match random.below(6) {
            0 => 0,
            1 => 1 + random.below(100),
            2 => piece_len * (1 + random.below(3)),
            3 => piece_len * (1 + random.below(3)) + 1,
            _ => random.below(5 * piece_len),
        };
        let bytes = random.bytes(len as usize);
        files.push(File { path, bytes, executable: random.below(8) == 0 });
    }
    if files.iter().all(|file| file.bytes.is_empty()) {
        files[0].bytes = random.bytes(17);
    }
    files
}

pub fn info_hashes_agree() -> Result<(), Failed> {
    let trees = setting("RINGSEED_DIFFERENTIAL_TREES", TREES);
    let mut random = Seeded::new(setting("RINGSEED_DIFFERENTIAL_SEED", 0x5eed));
    let scratch = Scratch::new("made");
    let mut parser = Parser::start()?;
    let (mut maker, mut to, mut from) = python("create")?;
    for number in 0..trees {
        let piece_len = 16_384 << random.below(3);
        let files = tree(&mut random, piece_len);
        let kinds = [(Kind::V1, "v1"), (Kind::V2, "v2"), (Kind::Hybrid, "hybrid")];
        let (kind, kind_name) = kinds[(number % 3) as usize];
        // One file at the top of a folder: a v2 torrent cannot tell the folder, and we refuse to make it.
        let is_lone = files.len() == 1 && !files[0].path.contains('/');
        let (kind, kind_name) = if is_lone { kinds[0] } else { (kind, kind_name) };
        let root = scratch.join(&format!("tree{number}"));
        for file in &files {
            write(&root.join(&file.path), file)?;
        }
        let options =
            CreateOptions { kind, piece_len_bytes: Some(piece_len), ..CreateOptions::default() };
        let made = create(&root, &options, &|_, _| {})?.metainfo;
        let info = made.info();
        let or_dash = |hash: Option<String>| hash.unwrap_or_else(|| "-".to_owned());
        let v1 = or_dash(info.info_hash_v1().map(|hash| hex(&hash)));
        let v2 = or_dash(info.info_hash_v2().map(|hash| hex(&hash)));

        // In our order, which for v1 alone libtorrent keeps; for the others it has one of its own, the same.
        let listed: Vec<_> = info
            .files()
            .filter(|file| !file.pad)
            .map(|file| serde_json::json!([file.path().as_str(), file.len_bytes, file.executable]))
            .collect();
        let job = serde_json::json!({
            "folder": scratch.path(), "files": listed, "piece_length": piece_len, "kind": kind_name,
        });
        writeln!(to, "{job}")?;
        to.flush()?;
        let mut theirs = String::new();
        from.read_line(&mut theirs)?;
        let ours = format!("{v1} {v2}\n");
        if ours != theirs {
            return Err(
                format!("tree {number}, {kind_name}: ours {ours}theirs {theirs}{job}").into()
            );
        }
        let read = parser.ask(std::iter::once(&made.encode()[..]))?.remove(0);
        match &read {
            Verdict::Taken(facts)
                if or_dash(facts.v1.clone()) == v1 && or_dash(facts.v2.clone()) == v2 => {}
            _ => {
                return Err(
                    format!("tree {number}, {kind_name}: libtorrent reads ours as {read}").into()
                );
            }
        }
        fs::remove_dir_all(&root)?;
    }
    drop(to);
    maker.wait()?;
    println!("{trees} trees: both info hashes agree");
    Ok(())
}

fn write(path: &Path, file: &File) -> Result<(), Failed> {
    fs::create_dir_all(path.parent().ok_or("a file lies in a folder")?)?;
    fs::write(path, &file.bytes)?;
    let mode = if file.executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}
