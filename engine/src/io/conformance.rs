//! One suite for every driver: what a machine may rely on, whoever executes its operations.
//!
//! A [`Relay`] stands in the shard's place: the test hands it operations and gets the completions.
//! At the end every operation has been answered exactly once and every extent is back.
//!
//! A driver that lives in a crate of its own instantiates the suite in its tests, with
//! [`driver_suite`](crate::driver_suite) and this crate's feature `conformance`.
#![allow(missing_docs, reason = "tests: their names are sentences")]

pub mod files;
#[cfg(test)]
mod own;
pub mod real;
pub mod sockets;
pub mod transfer;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ringseed_sys::arena::{Arena, EXTENT_LEN_BYTES};
use ringseed_sys::dir::DirHandle;

use super::{Completion, Done, Machine, Op, OpId, Ops, RecvBuf, RecvSlot, SockId};

/// Two nodes that can reach each other, run by some driver.
pub trait Rig {
    fn push(&mut self, node: usize, op: Op);
    /// Waits for the node's next completion.
    fn next(&mut self, node: usize) -> Completion;
    /// Where the node listens.
    fn addr(&self, node: usize) -> SocketAddr;
    /// An address where nobody listens.
    fn dead_addr(&self) -> SocketAddr;
    fn root(&self, node: usize) -> Arc<DirHandle>;
    fn arena(&self) -> &Arena;
    /// Stops both machines and checks that nothing was left behind.
    fn stop(self: Box<Self>);
    /// How much a bulk test moves.
    fn bulk_bytes(&self) -> usize;
    /// Heals or cuts the link between the two nodes, where there is one to cut.
    fn set_link(&mut self, _is_up: bool) {
        panic!("only the simulation cuts links")
    }
}

/// A [`Machine`] that does what it is told and tells what came of it.
pub struct Relay {
    shared: Arc<Mutex<Orders>>,
    told: Sender<Completion>,
    in_flight: HashSet<OpId>,
}

#[derive(Default)]
pub struct Orders {
    ops: VecDeque<Op>,
    stop: bool,
}

impl Orders {
    pub fn push(&mut self, op: Op) {
        self.ops.push_back(op);
    }

    /// The machine stops when all is answered.
    pub fn stop(&mut self) {
        self.stop = true;
    }
}

impl Relay {
    pub fn new(shared: Arc<Mutex<Orders>>, told: Sender<Completion>) -> Relay {
        Relay { shared, told, in_flight: HashSet::new() }
    }
}

impl Machine for Relay {
    fn handle(&mut self, completion: Completion, _now: Instant) {
        if !matches!(completion.done, Done::Accepted { .. }) {
            assert!(self.in_flight.remove(&completion.id), "answered twice: {completion:?}");
        }
        self.told.send(completion).unwrap();
    }

    fn poll(&mut self, ops: &mut Ops, _now: Instant) {
        for op in self.shared.lock().unwrap().ops.drain(..) {
            if let Some(id) = id_of(&op) {
                assert!(self.in_flight.insert(id), "the test uses {id:?} twice");
            }
            ops.push_back(op);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_wake(&mut self, _now: Instant) {}

    fn is_stopped(&self) -> bool {
        self.shared.lock().unwrap().stop && self.in_flight.is_empty()
    }
}

fn id_of(op: &Op) -> Option<OpId> {
    match op {
        Op::Connect { id, .. } | Op::PollIn { id, .. } | Op::Recv { id, .. } => Some(*id),
        Op::Detach { id, .. } | Op::Attach { id, .. } => Some(*id),
        Op::Send { id, .. } | Op::Open { id, .. } | Op::Read { id, .. } => Some(*id),
        Op::Put { id, .. } => Some(*id),
        Op::Write { id, .. } | Op::WriteSmall { id, .. } | Op::Sync { id, .. } => Some(*id),
        Op::Allocate { id, .. } | Op::RemoveTree { id, .. } | Op::Aside { id, .. } => Some(*id),
        Op::Close { .. } | Op::CloseFile { .. } => None,
    }
}

/// A rig with what tests ask for all the time: fresh ids, and completions by id.
pub struct Bench {
    pub rig: Box<dyn Rig>,
    next_id: u64,
    stash: [VecDeque<Completion>; 2],
}

impl Bench {
    pub fn new(rig: Box<dyn Rig>) -> Bench {
        Bench { rig, next_id: 1, stash: Default::default() }
    }

    pub fn id(&mut self) -> OpId {
        self.next_id += 1;
        OpId(self.next_id)
    }

    /// Starts the operation that `make` makes of a fresh id.
    pub fn start(&mut self, node: usize, make: impl FnOnce(OpId) -> Op) -> OpId {
        let id = self.id();
        self.rig.push(node, make(id));
        id
    }

    /// Waits for the answer to `id`; others are kept for later.
    pub fn wait(&mut self, node: usize, id: OpId) -> Done {
        if let Some(at) = self.stash[node].iter().position(|kept| kept.id == id) {
            return self.stash[node].remove(at).unwrap().done;
        }
        loop {
            let completion = self.rig.next(node);
            if completion.id == id {
                return completion.done;
            }
            self.stash[node].push_back(completion);
        }
    }

    /// Starts an operation and waits for its answer.
    pub fn run(&mut self, node: usize, make: impl FnOnce(OpId) -> Op) -> Done {
        let id = self.start(node, make);
        self.wait(node, id)
    }

    /// Connects node 1 to node 0; the two ends.
    pub fn connect(&mut self) -> (SockId, SockId) {
        let addr = self.rig.addr(0);
        let timeout = std::time::Duration::from_secs(5);
        let out = match self.run(1, |id| Op::Connect { id, addr, timeout }) {
            Done::Connected(Ok(sock)) => sock,
            other => panic!("{other:?}"),
        };
        match self.wait(0, OpId(0)) {
            Done::Accepted { sock, .. } => (sock, out),
            other => panic!("{other:?}"),
        }
    }

    /// A buffer for `len` bytes in small space.
    pub fn small(len: usize) -> RecvBuf {
        let slots = vec![RecvSlot::Small { start: 0, len }];
        RecvBuf { small: vec![0; len], slots, ..RecvBuf::default() }
    }

    pub fn stop(self) {
        let arena = self.rig.arena().clone();
        drop(self.stash);
        self.rig.stop();
        assert_eq!(arena.in_use(), 0, "extents were lost");
    }
}

/// Bytes that differ along their way, so that a shifted or swapped stretch is seen.
pub fn pattern(seed: u64, at: usize, out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        let x = (at + i) as u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *byte = (x ^ (x >> 8) ^ (x >> 17)).wrapping_mul(151) as u8;
    }
}

/// Instantiates the suite as a module of tests: of a driver that a [`Rig`](crate::io::conformance::Rig) is made
/// for by an expression, or, with `real`, of an [`IoDriver`](crate::IoDriver), with what only a driver on the real system
/// can show.
#[macro_export]
macro_rules! driver_suite {
    (real $name:ident, $driver:expr) => {
        mod $name {
            use super::*;
            $crate::driver_suite!(@all $crate::io::conformance::real::rig($driver));
            $crate::driver_suite!(@real $driver, reads_take_the_page_cache_when_it_is_warm);
            $crate::driver_suite!(@real $driver, connecting_times_out);
            $crate::driver_suite!(@real $driver, it_says_its_name);
            $crate::driver_suite!(@real $driver, an_idle_driver_sleeps);
            $crate::driver_suite!(@real $driver, accepting_pauses_when_descriptors_run_out);

            #[test]
            fn torrents_go_from_engine_to_engine() {
                $crate::io::conformance::transfer::torrents_go_from_engine_to_engine($driver);
            }
        }
    };
    ($name:ident, $make:expr) => {
        mod $name {
            $crate::driver_suite!(@all $make);
        }
    };
    (@all $make:expr) => {
        $crate::driver_suite!(@ $make, sockets: bytes_are_gathered_scattered_and_polled_for);
        $crate::driver_suite!(@ $make, sockets: a_socket_moves_with_what_it_holds);
        $crate::driver_suite!(@ $make, sockets: waiting_for_more_has_an_end);
        $crate::driver_suite!(@ $make, sockets: closing_ends_what_is_in_flight);
        $crate::driver_suite!(@ $make, sockets: a_peer_that_closes_is_seen);
        $crate::driver_suite!(@ $make, sockets: refused_and_closed_tell_their_errors);
        $crate::driver_suite!(@ $make, sockets: bulk_arrives_whole_both_ways);
        $crate::driver_suite!(@ $make, sockets: many_connections_are_accepted);
        $crate::driver_suite!(@ $make, files: odd_stretches_read_back);
        $crate::driver_suite!(@ $make, files: errors_are_told_and_give_buffers_back);
        $crate::driver_suite!(@ $make, files: trees_are_removed_and_files_closed);
        $crate::driver_suite!(@ $make, files: small_writes_append_and_overwrite);
        $crate::driver_suite!(@ $make, files: short_files_are_put);
    };
    (@ $make:expr, $area:ident: $test:ident) => {
        #[test]
        fn $test() {
            let mut bench = $crate::io::conformance::Bench::new($make);
            $crate::io::conformance::$area::$test(&mut bench);
            bench.stop();
        }
    };
    (@real $driver:expr, $test:ident) => {
        #[test]
        fn $test() {
            let name = concat!(module_path!(), "::", stringify!($test));
            $crate::io::conformance::real::$test($driver, name);
        }
    };
}

pub fn extents(n: usize) -> Arena {
    Arena::new(n * EXTENT_LEN_BYTES).unwrap()
}

pub fn relay_parts()
-> (Arc<Mutex<Orders>>, Sender<Completion>, std::sync::mpsc::Receiver<Completion>) {
    let (told, heard) = channel();
    (Arc::default(), told, heard)
}
