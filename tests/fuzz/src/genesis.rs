//! The genesis file, members on a command line, and addresses.

use ringseed_ledger::{Addr, Genesis, GenesisMember, PublicKey, State};

use crate::market;
use crate::source::{Source, damage};

/// What parses says the same when it is written and read again, and makes a market.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    if source.flag() {
        let mut text = market::genesis().to_text().into_bytes();
        damage(&mut source, &mut text);
        check(&text);
    } else {
        check(source.rest());
    }
}

fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(genesis) = Genesis::from_text(text) {
        let again = Genesis::from_text(&genesis.to_text()).expect("what we write we read");
        assert_eq!((again.hash(), again.to_bytes()), (genesis.hash(), genesis.to_bytes()));
        assert!(genesis.members.iter().all(|member| member.key.is_usable() && member.power > 0));
        let mut addrs: Vec<Addr> = Vec::new();
        for member in &genesis.members {
            addrs.extend([member.consensus_addr, member.payload_addr]);
            check_addr(&member.consensus_addr);
            check_addr(&member.payload_addr);
        }
        addrs.sort_unstable();
        assert!(addrs.windows(2).all(|pair| pair[0] != pair[1]), "one address for two");
        let state = State::from_genesis(&genesis).expect("a valid genesis makes a market");
        assert_eq!(state.validators().len(), genesis.members.len());
        assert_eq!(state.genesis_hash(), genesis.hash());
    }
    if let Ok(member) = text.parse::<GenesisMember>() {
        assert_eq!(member.to_string().parse(), Ok(member));
    }
    if let Ok(addr) = text.parse::<Addr>() {
        check_addr(&addr);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
    }
}

/// An address of one host, with one spelling.
fn check_addr(addr: &Addr) {
    let ip = addr.get().ip();
    assert!(addr.get().port() != 0 && !ip.is_unspecified() && !ip.is_multicast());
    assert_eq!(ip.to_canonical(), ip, "{addr} has a shorter spelling");
    assert_eq!(addr.to_string().parse(), Ok(*addr));
}
