//! The suite's rig over the simulation, and what only it can show.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender};

use super::*;
use crate::io::conformance::{Bench, Orders, Relay, Rig, extents, relay_parts};
use crate::io::{SendBuf, SendPart};
use ringseed_sys::arena::Arena;
use ringseed_sys::dir::DirHandle;

pub(in crate::io) struct SimRig {
    world: World<Relay>,
    orders: Vec<Arc<Mutex<Orders>>>,
    told: Vec<Sender<Completion>>,
    heard: Vec<Receiver<Completion>>,
    arena: Arena,
    root: Arc<DirHandle>,
}

pub(in crate::io) fn sim_rig(config: SimConfig) -> SimRig {
    let mut rig = SimRig {
        world: World::new(config),
        orders: Vec::new(),
        told: Vec::new(),
        heard: Vec::new(),
        arena: extents(64),
        // Only its name is used: nothing real is touched.
        root: Arc::new(DirHandle::open(&std::env::temp_dir()).unwrap()),
    };
    for _ in 0..2 {
        let node = rig.world.add_node();
        let (orders, told, heard) = relay_parts();
        rig.world.run_machine(node, Relay::new(orders.clone(), told.clone()));
        rig.orders.push(orders);
        rig.told.push(told);
        rig.heard.push(heard);
    }
    rig
}

pub(in crate::io) fn rig() -> Box<dyn Rig> {
    Box::new(sim_rig(SimConfig::new(42)))
}

impl SimRig {
    /// A new machine on the disk that the crash left.
    fn restart(&mut self, node: usize) {
        let orders: Arc<Mutex<Orders>> = Arc::default();
        self.orders[node] = orders.clone();
        while self.heard[node].try_recv().is_ok() {}
        self.world.run_machine(node, Relay::new(orders, self.told[node].clone()));
    }
}

impl Rig for SimRig {
    fn push(&mut self, node: usize, op: Op) {
        self.orders[node].lock().unwrap().push(op);
        self.world.waker(node).wake();
        self.world.settle();
    }

    fn next(&mut self, node: usize) -> Completion {
        loop {
            if let Ok(completion) = self.heard[node].try_recv() {
                return completion;
            }
            assert!(self.world.step(), "nothing will ever complete");
        }
    }

    fn addr(&self, node: usize) -> SocketAddr {
        self.world.addr(node)
    }

    fn dead_addr(&self) -> SocketAddr {
        "10.9.9.9:1".parse().unwrap()
    }

    fn root(&self, _node: usize) -> Arc<DirHandle> {
        self.root.clone()
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn stop(mut self: Box<Self>) {
        for node in 0..2 {
            self.orders[node].lock().unwrap().stop();
            self.world.waker(node).wake();
        }
        while self.world.step() {}
        for node in 0..2 {
            assert!(!self.world.is_running(node), "node {node} does not stop");
            assert!(self.heard[node].try_recv().is_err(), "completions that nobody asked for");
        }
    }

    fn bulk_bytes(&self) -> usize {
        4 << 20
    }

    fn set_link(&mut self, is_up: bool) {
        self.world.set_link(0, 1, is_up);
    }
}

fn text(bytes: &[u8]) -> SendBuf {
    let parts = vec![SendPart::Small { start: 0, len: bytes.len() }];
    SendBuf { small: bytes.to_vec(), parts }
}

/// What happened and when, in a run full of chance.
fn history(seed: u64) -> Vec<String> {
    let mut config = SimConfig::new(seed);
    config.faults.reset_ppm = 20_000;
    let mut rig = sim_rig(config);
    let (addr, timeout) = (rig.addr(0), Duration::from_secs(1));
    let mut told = Vec::new();
    for id in 1..20 {
        rig.push(1, Op::Connect { id: OpId(id), addr, timeout });
    }
    for _ in 0..200 {
        if !rig.world.step() {
            break;
        }
        for node in 0..2 {
            while let Ok(completion) = rig.heard[node].try_recv() {
                told.push(format!("{:?} {node} {completion:?}", rig.world.elapsed()));
                if let Done::Connected(Ok(sock)) = completion.done {
                    let id = OpId(1000 + sock.0);
                    rig.push(node, Op::Send { id, sock, buf: text(&[1; 5000]) });
                }
            }
        }
    }
    told
}

#[test]
fn a_run_is_replayed_by_its_seed() {
    assert!(history(1).len() > 30);
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

#[test]
fn a_cut_link_holds_bytes_back_and_heals() {
    let mut bench = Bench::new(Box::new(sim_rig(SimConfig::new(7))));
    let (a, b) = bench.connect();
    bench.rig.set_link(false);
    let recv = bench.start(0, |id| Op::Recv { id, sock: a, buf: Bench::small(4) });
    let sent = bench.run(1, |id| Op::Send { id, sock: b, buf: text(b"late") });
    assert!(matches!(sent, Done::Sent(Ok(()), _)));
    let (addr, timeout) = (bench.rig.addr(0), Duration::from_secs(3));
    let done = bench.run(1, |id| Op::Connect { id, addr, timeout });
    assert!(matches!(done, Done::Connected(Err(e)) if e.kind() == io::ErrorKind::TimedOut));
    bench.rig.set_link(true);
    let done = bench.wait(0, recv);
    assert!(matches!(done, Done::Received(Ok(n), buf) if buf.small[..n] == b"late"[..n]));
    bench.rig.push(0, Op::Close { sock: a });
    bench.rig.push(1, Op::Close { sock: b });
    bench.stop();
}

#[test]
fn a_crash_tears_what_was_not_synced_and_the_disk_lives_on() {
    let (rel, root_path) = (PathBuf::from("d/f"), std::env::temp_dir());
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let mut rig = sim_rig(SimConfig::new(seed));
        let arena = rig.arena.clone();
        let (root, path, mode) = (rig.root.clone(), rel.clone(), OpenMode::Write);
        rig.push(0, Op::Open { id: OpId(1), root, path, mode, direct: true });
        let Done::Opened(Ok((file, _))) = rig.next(0).done else { panic!() };
        rig.push(0, Op::WriteSmall { id: OpId(2), file, rows: vec![(0, vec![1; 2000])] });
        rig.next(0);
        rig.push(0, Op::Sync { id: OpId(3), file });
        assert!(matches!(rig.next(0).done, Done::Synced(Ok(()))));
        // One write done, one under way.
        rig.push(0, Op::WriteSmall { id: OpId(4), file, rows: vec![(2000, vec![2; 2000])] });
        rig.next(0);
        let mut buf = arena.try_take().unwrap();
        buf[..2000].fill(3);
        let (buf, len) = (buf.freeze(), 2000);
        rig.push(0, Op::Write { id: OpId(5), file, offset_bytes: 4000, buf, start: 0, len });
        let crash = if seed % 4 == 0 { Crash::Process } else { Crash::Power };
        rig.world.crash(0, crash);
        assert_eq!(arena.in_use(), 0, "the crash leaves extents behind");
        let found = rig.world.file_content(0, &root_path, &rel).unwrap().to_vec();
        assert!(found.len() >= 2000 && found[..2000].iter().all(|&byte| byte == 1));
        if crash == Crash::Process {
            assert_eq!(found[2000..], [2; 2000]);
        } else {
            let count = |mark| found.iter().filter(|&&byte| byte == mark).count();
            outcomes.insert((count(2).min(1) + count(2) / 2000, count(3).min(1) + count(3) / 2000));
        }
        rig.restart(0);
        let (root, path, mode) = (rig.root.clone(), rel.clone(), OpenMode::Read);
        rig.push(0, Op::Open { id: OpId(1), root, path, mode, direct: false });
        assert!(
            matches!(rig.next(0).done, Done::Opened(Ok((_, len))) if len == found.len() as u64)
        );
    }
    assert!(outcomes.len() >= 7, "kept, lost and torn in all mixtures: {outcomes:?}");
}

/// A short file that goes past the page cache has its length before it has its bytes: cut short between the two, it
/// looks like what it should be.
#[test]
fn a_put_that_is_cut_short_may_leave_a_file_of_the_right_length() {
    let (rel, root_path) = (PathBuf::from("d/f"), std::env::temp_dir());
    for direct in [false, true] {
        let mut lens = BTreeSet::new();
        for seed in 0..60 {
            let mut rig = sim_rig(SimConfig::new(seed));
            let buf = rig.arena.try_take().unwrap().freeze();
            let (root, path, mode) = (rig.root.clone(), rel.clone(), OpenMode::Write);
            let (len_bytes, len) = (20_480, 20_480);
            rig.push(
                0,
                Op::Put {
                    id: OpId(1),
                    root,
                    path,
                    mode,
                    direct,
                    len_bytes,
                    offset_bytes: 0,
                    buf,
                    start: 0,
                    len,
                },
            );
            rig.world.crash(0, Crash::Process);
            assert_eq!(rig.arena.in_use(), 0, "the crash leaves extents behind");
            lens.insert(rig.world.file_content(0, &root_path, &rel).map(<[u8]>::len));
        }
        let len = if direct { 20_480 } else { 0 };
        assert_eq!(lens, BTreeSet::from([None, Some(len)]), "past the page cache: {direct}");
    }
}

#[test]
fn injected_disk_errors_come_with_their_buffers() {
    let mut config = SimConfig::new(3);
    config.faults.read_error_ppm = 1_000_000;
    config.faults.write_error_ppm = 1_000_000;
    config.faults.sync_error_ppm = 1_000_000;
    let mut bench = Bench::new(Box::new(sim_rig(config)));
    let (root, path, mode) = (bench.rig.root(0), PathBuf::from("f"), OpenMode::Write);
    let opened = bench.run(0, |id| Op::Open { id, root, path, mode, direct: true });
    let Done::Opened(Ok((file, _))) = opened else { panic!() };
    let is_eio = |error: &io::Error| error.raw_os_error() == Some(Errno::IO.raw_os_error());
    let buf = bench.rig.arena().try_take().unwrap();
    let done = bench.run(0, |id| Op::Read { id, file, offset_bytes: 0, buf, start: 0, len: 1 });
    let Done::Read(Err(error), buf) = done else { panic!() };
    assert!(is_eio(&error));
    let buf = buf.freeze();
    let done = bench.run(0, |id| Op::Write { id, file, offset_bytes: 0, buf, start: 0, len: 1 });
    let Done::Written(Err(error), buf) = done else { panic!() };
    assert!(is_eio(&error));
    drop(buf);
    assert!(matches!(bench.run(0, |id| Op::Sync { id, file }), Done::Synced(Err(_))));
    bench.stop();
}

#[test]
fn an_upload_rate_is_kept_in_virtual_time() {
    let mut rig = sim_rig(SimConfig::new(5));
    rig.world.set_upload_rate(1, Some(1_000_000));
    let (addr, timeout) = (rig.addr(0), Duration::from_secs(1));
    rig.push(1, Op::Connect { id: OpId(1), addr, timeout });
    let Done::Accepted { sock: taken, .. } = rig.next(0).done else { panic!() };
    let Done::Connected(Ok(sock)) = rig.next(1).done else { panic!() };
    let began = rig.world.elapsed();
    rig.push(1, Op::Send { id: OpId(2), sock, buf: text(&vec![1; 2_000_000]) });
    let mut got = 0;
    for id in 10.. {
        rig.push(0, Op::Recv { id: OpId(id), sock: taken, buf: Bench::small(100_000) });
        let Done::Received(Ok(n), _) = rig.next(0).done else { panic!() };
        got += n;
        if got == 2_000_000 {
            break;
        }
    }
    let took = rig.world.elapsed() - began;
    assert!(took > Duration::from_millis(1900) && took < Duration::from_millis(2500), "{took:?}");
}
