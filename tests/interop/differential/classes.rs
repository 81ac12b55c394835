//! The classes of differences between our parser and libtorrent's, each with the words that decide it.

use std::path::Path;

use libtest_mimic::Failed;
use ringseed_core::bencode::BencodeError;
use ringseed_core::geometry::GeometryError;
use ringseed_core::metainfo::MetainfoError;

use crate::verdict::{Facts, Refusal, Verdict};

/// A kind of difference. Its file is `interop/differential/NAME.torrent`.
pub struct Class {
    pub name: &'static str,
    /// What the two do, and what makes ours right.
    pub why: &'static str,
}

/// All of them. `why` names the specification and the section.
pub const CLASSES: [Class; 12] = [
    Class {
        name: "canonical",
        why: "We refuse leading zeros, -0, numbers past 64 bits and keys that come twice, and in a torrent with a v2 view keys \
              out of order; libtorrent reads on. BEP 3, bencoding: such numbers are invalid, keys are sorted. BEP 52, infohash: \
              whoever does not hash the bytes as they stand must refuse what is not valid.",
    },
    Class {
        name: "trailing-bytes",
        why: "We refuse bytes behind the dictionary; libtorrent leaves them unread. BEP 3, metainfo files: the file is a \
              bencoded dictionary, so what follows one belongs to no torrent.",
    },
    Class {
        name: "half-view",
        why: "We refuse a torrent with both `length` and `files`, or with one of `pieces` and these without the other, or with \
              one of them of the wrong type; libtorrent takes what it can use. BEP 3, info dictionary: a `length` or `files`, \
              but not both or neither. BEP 52, upgrade path: a torrent for both formats holds both whole.",
    },
    Class {
        name: "meta-version",
        why: "We refuse a `meta version` other than 2 whatever else is there; libtorrent falls back to a v1 view. BEP 52, \
              meta version: to be looked at before anything else, and a version one does not know is to be refused by name.",
    },
    Class {
        name: "hybrid-views",
        why: "We compare the raw paths, lengths, pads and order of both views; libtorrent compares cleaned paths and passes \
              over pads of no bytes. BEP 52, upgrade path: names, order and alignment must be identical before both are used.",
    },
    Class {
        name: "v2-parts",
        why: "We refuse folders with nothing in them, a root of an empty file, pads in the tree, one root for files of \
              different length, and layers that are no dictionary of strings; libtorrent passes over them. BEP 52, file tree: \
              an entry is a folder of entries or a file with its properties, roots are of files that are not empty, gaps are \
              implied, equal roots are equal files; metainfo files: the layers are a dictionary of strings by root.",
    },
    Class {
        name: "names-refused",
        why: "We refuse components that lead elsewhere or are empty, paths that two files share or that are a file and a \
              folder, and what no file system takes; libtorrent invents other names. BEP 52, file tree, and BEP 3, info \
              dictionary: such names must not be used as they are; nothing says under which name a file would be found again.",
    },
    Class {
        name: "names-mapped",
        why: "Both take the torrent but write a name differently: we as %XX, each name as another; libtorrent by leaving out \
              and by underscores, and it renames what differs only in case. BEP 52, file tree: a reader cleans names as its \
              system needs; case does not clash on ours.",
    },
    Class {
        name: "utf8-keys",
        why: "libtorrent prefers `name.utf-8` and `path.utf-8`; to us they mean nothing. BEP 3, info dictionary: `name` and \
              `path` are the names, and UTF-8 themselves; no BEP knows the other keys.",
    },
    Class {
        name: "piece-length",
        why: "We take v1 pieces from 1 KiB to 128 MiB and v2 pieces to 128 MiB; libtorrent from one byte to 512 MiB. BEP 3 names \
              no bound, a power of two mostly; ours keep a piece within what a receiver can hold and above what a request costs.",
    },
    Class {
        name: "pads-and-links",
        why: "We take an entry with the letter `l` for a symbolic link, leave it out, and refuse it if it has a length; to \
              libtorrent one without a target is a file. We do not look at the path of a pad; libtorrent refuses an empty one. \
              BEP 47, attr, symlinks and padding files: the letter makes it a link, whose length is always zero; for the path \
              of a pad there is no use, and a reader should not ask for it.",
    },
    Class {
        name: "only-pads",
        why: "We refuse a torrent whose files are all pads, links or empty; libtorrent takes one of pads. BEP 47, padding files: \
              a pad lets the file behind it begin with a piece, and clients should not ask for it: there is nothing to fetch.",
    },
];

/// The class of a difference, if it is one.
pub fn of(bytes: &[u8], ours: &Verdict, theirs: &Verdict) -> Option<&'static str> {
    let name = match (ours, theirs) {
        (Verdict::Refused(Refusal::Ours(error)), Verdict::Taken(facts)) => {
            refused_by_us(bytes, error, facts)?
        }
        (Verdict::Taken(ours), Verdict::Taken(theirs)) => read_differently(bytes, ours, theirs)?,
        // Nothing is left of a name when they have cleaned it.
        (Verdict::Taken(ours), Verdict::Refused(Refusal::Theirs(message)))
            if message.contains("missing name")
                && ours.files.iter().any(|file| vanishes(&file.path)) =>
        {
            "names-mapped"
        }
        (Verdict::Taken(_), Verdict::Refused(Refusal::Theirs(message))) => {
            // The other names are no names, or not those of the v2 tree.
            let is_of_names = message.contains("v1 and v2 file metadata does not match")
                || message.contains("name");
            match message.contains("invalid 'name'") && has_pads(bytes) {
                _ if is_of_names && has_utf8_keys(bytes) => "utf8-keys",
                true => "pads-and-links",
                false => return None,
            }
        }
        _ => return None,
    };
    CLASSES.iter().find(|class| class.name == name).map(|class| class.name)
}

/// A parser that accepts but canonical bencoding, by other hands.
fn is_canonical(bytes: &[u8]) -> bool {
    crate::decoders::bendy_takes(bytes)
}

fn refused_by_us(bytes: &[u8], error: &MetainfoError, theirs: &Facts) -> Option<&'static str> {
    use BencodeError as B;
    use MetainfoError as M;
    let has_v2 = theirs.v2.is_some();
    match error {
        M::NotCanonical { .. } if !is_canonical(bytes) => Some("canonical"),
        M::Bencode(B::NotCanonical { .. } | B::DuplicateKey { .. }) if !is_canonical(bytes) => {
            Some("canonical")
        }
        M::Bencode(B::NumberRange { .. }) => Some("canonical"),
        M::Bencode(B::Trailing { offset }) => {
            // What is in front of it is a good torrent to both.
            let alone = crate::verdict::ours(&bytes[..*offset]);
            (alone.agrees_with(&Verdict::Taken(theirs.clone()))
                || of(&bytes[..*offset], &alone, &Verdict::Taken(theirs.clone())).is_some())
            .then_some("trailing-bytes")
        }
        M::View(_) => Some("half-view"),
        M::WrongValue { key: "files" | "pieces" | "length" } if has_v2 => Some("half-view"),
        M::MetaVersion { found } if *found != 2 => Some("meta-version"),
        M::Hybrid { .. } if has_v2 => Some("hybrid-views"),
        M::FileTree { .. } | M::RootShared | M::WrongValue { key: "piece layers" } if has_v2 => {
            Some("v2-parts")
        }
        M::Name(_) => Some("names-refused"),
        M::Symlink { .. } => Some("pads-and-links"),
        M::WrongValue { key: "path" | "name" } | M::Missing { key: "path" | "name" } => {
            has_utf8_keys(bytes).then_some("utf8-keys")
        }
        M::Geometry(GeometryError::PieceLen { len_bytes, .. }) => {
            (*len_bytes < 1024 || *len_bytes > 128 << 20).then_some("piece-length")
        }
        M::Geometry(GeometryError::Empty) => {
            theirs.files.iter().all(|file| file.len == 0).then_some("only-pads")
        }
        _ => None,
    }
}

fn read_differently(bytes: &[u8], ours: &Facts, theirs: &Facts) -> Option<&'static str> {
    let without_paths = |facts: &Facts| {
        let mut facts = facts.clone();
        facts.files.iter_mut().for_each(|file| file.path.clear());
        facts
    };
    if without_paths(ours) != without_paths(theirs) {
        let mut without_links = theirs.clone();
        without_links
            .files
            .retain(|file| file.len > 0 || ours.files.iter().any(|our| our.path == file.path));
        return (without_links == *ours && ours.files.len() < theirs.files.len())
            .then_some("pads-and-links");
    }
    if has_utf8_keys(bytes) {
        return Some("utf8-keys");
    }
    let folded: Vec<String> =
        ours.files.iter().map(|file| String::from_utf8_lossy(&file.path).to_lowercase()).collect();
    let pairs = ours.files.iter().zip(&theirs.files).zip(&folded);
    let are_explained = pairs.filter(|((a, b), _)| a.path != b.path).all(|((a, b), lower)| {
        // They count the path of a pad as taken, too.
        let is_cleaned = has_pads(bytes) && is_numbered(&a.path, &b.path)
            || a.path.contains(&b'%')
            || String::from_utf8_lossy(&a.path).chars().any(is_cleaned_by_them)
            || a.path.split(|&byte| byte == b'/').any(|part| part.len() > THEIR_COMPONENT_LEN_MAX);
        // One path is another's, or its folder, if case is folded.
        let clashes = folded.iter().filter(|other| {
            *other == lower
                || other.strip_prefix(lower.as_str()).is_some_and(|rest| rest.starts_with('/'))
        });
        is_cleaned || clashes.count() > 1
    });
    are_explained.then_some("names-mapped")
}

/// Longer components libtorrent cuts, in bytes.
const THEIR_COMPONENT_LEN_MAX: usize = 240;

/// Characters that libtorrent leaves out: they turn the direction of the text around them.
fn is_cleaned_by_them(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}')
}

/// Whether libtorrent would leave out all of a component.
fn vanishes(path: &[u8]) -> bool {
    let mut parts = path.split(|&byte| byte == b'/');
    parts.any(|part| String::from_utf8_lossy(part).chars().all(is_cleaned_by_them))
}

/// Whether a path is another with a dot and a number in front of its extension.
fn is_numbered(path: &[u8], numbered: &[u8]) -> bool {
    (0..=path.len()).any(|at| {
        let rest =
            numbered.strip_prefix(&path[..at]).and_then(|rest| rest.strip_suffix(&path[at..]));
        rest.and_then(|rest| rest.strip_prefix(b"."))
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_digit))
    })
}

fn has_pads(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|window| window == b"4:attr")
}

fn has_utf8_keys(bytes: &[u8]) -> bool {
    bytes.windows(10).any(|window| window == b"name.utf-8" || window == b"path.utf-8")
}

/// The committed file of a class.
pub fn file(class: &Class) -> Result<Vec<u8>, Failed> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/differential");
    let path = folder.join(format!("{}.torrent", class.name));
    std::fs::read(&path)
        .map_err(|error| format!("{}: {error} ({})", path.display(), class.why).into())
}
