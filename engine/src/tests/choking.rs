//! Slots under a cap, seen by scripted peers.

use ringseed_core::wire::message::Message;

use super::script::Script;
use super::*;
use crate::api::{Rates, Scope};
use crate::test_support::{TestDir, tree};

/// As many slots as a low cap leaves.
const SLOTS: usize = 4;

struct Scene {
    _dir: TestDir,
    seed: Node,
    wire_id: [u8; 20],
}

fn scene(upload: Option<u64>) -> Scene {
    let dir = TestDir::new("choking");
    let source = dir.path().join("source");
    tree(&source.join("data"), 4);
    let metainfo = torrent(&source.join("data"), Kind::V1, 32 << 10);
    let seed = Node::start(dir.path(), 1);
    seed.engine.set_upload_rate(upload);
    seed.seed(&metainfo, &source);
    Scene { wire_id: metainfo.info().info_hash_v1().unwrap(), seed, _dir: dir }
}

impl Scene {
    /// A stock client that wants payload.
    fn peer(&self, number: u8) -> Script {
        let mut script = Script::dial(self.seed.addr(), self.wire_id, false, b"XX", number);
        script.say(&[Message::Interested]);
        script
    }
}

/// Whether the peer hears that it may ask, in half a second: a tenth of the time until anybody's turn ends.
fn is_unchoked(script: &mut Script) -> bool {
    let patience = Duration::from_millis(500);
    let until = Instant::now() + patience;
    while Instant::now() < until {
        match script.listen(patience, |message| matches!(message, Message::Unchoke)) {
            Some(Some(true)) => return true,
            Some(Some(false)) => {}
            Some(None) => return false,
            None => panic!("the engine hung up"),
        }
    }
    false
}

fn wait_unchoked(script: &mut Script, what: &str) {
    script.hear(what, |message| matches!(message, Message::Unchoke).then_some(()));
}

#[test]
fn without_a_cap_all_are_answered() {
    let scene = scene(None);
    let mut peers: Vec<Script> = (0..12).map(|number| scene.peer(number)).collect();
    peers.iter_mut().for_each(|peer| wait_unchoked(peer, "an unchoke"));
}

#[test]
fn a_cap_leaves_slots_for_few_and_the_next_one_moves_up() {
    let scene = scene(Some(64 << 10));
    let mut peers: Vec<Script> = (0..6).map(|number| scene.peer(number)).collect();
    let mut served: Vec<bool> = peers.iter_mut().map(is_unchoked).collect();
    assert_eq!(served.iter().filter(|served| **served).count(), SLOTS, "{served:?}");
    // One that wants nothing any more gives way to who waits, as does one that is gone.
    let first = served.iter().position(|served| *served).unwrap();
    peers[first].say(&[Message::NotInterested]);
    let mut late = scene.peer(77);
    wait_unchoked(&mut late, "the slot of who wants nothing");
    served[first] = false;
    let gone = served.iter().position(|served| *served).unwrap();
    let waiting = served.iter().rposition(|served| !*served).unwrap();
    peers.remove(gone);
    wait_unchoked(&mut peers[waiting - 1], "the slot of who is gone");
    // Without the cap nobody waits.
    scene.seed.engine.set_rates(Scope::All, Rates::default());
    let mut newest = scene.peer(99);
    wait_unchoked(&mut newest, "a slot without a cap");
}

#[test]
fn members_take_no_slot() {
    let scene = scene(Some(64 << 10));
    let mut strangers: Vec<Script> = (0..5).map(|number| scene.peer(number)).collect();
    let served = strangers.iter_mut().filter_map(|peer| is_unchoked(peer).then_some(())).count();
    assert_eq!(served, SLOTS);
    scene.seed.engine.set_members(vec![scene.seed.addr().ip()]);
    let mut member = scene.peer(200);
    // At once: a stranger would get a slot as well when its turn comes.
    assert!(is_unchoked(&mut member), "a member waits for its turn");
}
