//! Magnet links: what is read says the same when it is written and read again.

use ringseed_core::magnet::{HINTS_MAX, MAGNET_LEN_MAX, Magnet, PeerAddr};
use ringseed_core::select::FileSelection;

/// Any text as a link, as a selection of files, and as an address.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    link(text);
    link(&format!("magnet:?xt=urn:btih:{}&{text}", "ab".repeat(20)));
    if let Ok(select) = text.parse::<PeerAddr>() {
        assert!(select.port() > 0 && !select.host().is_empty());
        assert_eq!(select.to_string().parse(), Ok(select), "an address changes");
    }
    selection(text);
}

fn link(text: &str) {
    let Ok(link) = Magnet::parse(text) else { return };
    assert!(text.len() <= MAGNET_LEN_MAX);
    assert!(link.trackers.len() <= HINTS_MAX && link.peers.len() <= HINTS_MAX);
    assert!(link.ignored.len() <= HINTS_MAX, "parts without end are kept");
    assert!(link.ignored.iter().all(|part| part.chars().count() <= 80));
    assert!(link.hashes.wire_ids().count() >= 1);
    let written = link.to_string();
    if written.len() > MAGNET_LEN_MAX {
        return; // escaping lengthens
    }
    let again = Magnet::parse(&written).expect("what we write we read");
    assert!(again.ignored.is_empty(), "we write what we do not read: {:?}", again.ignored);
    assert_eq!(again, Magnet { ignored: Vec::new(), ..link });
}

/// A selection beside the numbers that it lists.
fn selection(text: &str) {
    let Ok(select) = FileSelection::parse(text) else { return };
    let mut listed = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u64>().expect("a number that was taken");
        listed.push(number(first)..=number(last));
    }
    let edges = listed.iter().flat_map(|range| [*range.start(), *range.end()]);
    for edge in edges {
        for index in edge.saturating_sub(1)..=edge + 1 {
            let wanted = listed.iter().any(|range| range.contains(&index));
            assert_eq!(select.contains(index as u32), wanted, "{index} of {text}");
        }
    }
    assert_eq!(FileSelection::parse(&select.to_string()), Ok(select));
}
