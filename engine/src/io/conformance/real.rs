//! The suite's rig over real drivers, and what only they can show.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringseed_sys::net::{self, Blocking};

use super::*;
use crate::config::IoDriver;
use crate::io::{DriverConfig, OpenMode, ReadPath, Running, start};

pub struct Node {
    pub orders: Arc<Mutex<Orders>>,
    pub heard: Receiver<Completion>,
    pub running: Running,
    pub addr: SocketAddr,
    pub root: Arc<DirHandle>,
}

pub struct RealRig {
    pub nodes: Vec<Node>,
    arena: Arena,
    folder: PathBuf,
}

/// `/var/tmp`, because /tmp may be a tmpfs without O_DIRECT.
pub fn fresh_folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ringseed-io-{}-{number}", std::process::id());
    let path = PathBuf::from("/var/tmp").join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

pub fn rig(driver: IoDriver) -> Box<dyn Rig> {
    rig_of(driver, false)
}

pub fn rig_of(driver: IoDriver, zero_copy: bool) -> Box<RealRig> {
    let arena = extents(64);
    let folder = fresh_folder();
    let root = |number| folder.join(format!("n{number}"));
    let nodes = (0..2).map(|number| node(driver, zero_copy, &arena, root(number)));
    Box::new(RealRig { nodes: nodes.collect(), arena, folder })
}

fn node(driver: IoDriver, zero_copy_send: bool, arena: &Arena, root: PathBuf) -> Node {
    let listener =
        net::listen("127.0.0.1:0".parse().unwrap(), Blocking::No, net::DualStack::No).unwrap();
    let addr = net::local_addr(listener.as_fd()).unwrap();
    let (orders, told, heard) = relay_parts();
    let config = DriverConfig {
        driver,
        listeners: vec![listener],
        arena: Some(arena.clone()),
        zero_copy_send,
        thread_name: "conformance".into(),
    };
    let shared = orders.clone();
    let running = start(config, move |_| Relay::new(shared, told)).unwrap();
    let root = Arc::new(DirHandle::create(&root).unwrap());
    Node { orders, heard, running, addr, root }
}

impl Rig for RealRig {
    fn push(&mut self, node: usize, op: Op) {
        self.nodes[node].orders.lock().unwrap().push(op);
        self.nodes[node].running.waker.wake();
    }

    fn next(&mut self, node: usize) -> Completion {
        self.nodes[node].heard.recv_timeout(Duration::from_secs(20)).expect("nothing completes")
    }

    fn addr(&self, node: usize) -> SocketAddr {
        self.nodes[node].addr
    }

    fn dead_addr(&self) -> SocketAddr {
        let listener =
            net::listen("127.0.0.1:0".parse().unwrap(), Blocking::No, net::DualStack::No).unwrap();
        net::local_addr(listener.as_fd()).unwrap() // closed again with the end of this line
    }

    fn root(&self, node: usize) -> Arc<DirHandle> {
        self.nodes[node].root.clone()
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn stop(self: Box<Self>) {
        for node in self.nodes {
            node.orders.lock().unwrap().stop();
            node.running.waker.wake();
            node.running.thread.join().unwrap().unwrap();
            let left = node.heard.try_iter().count();
            assert_eq!(left, 0, "completions that nobody asked for");
        }
        std::fs::remove_dir_all(self.folder).unwrap();
    }

    fn bulk_bytes(&self) -> usize {
        64 << 20
    }
}

/// The path that each read took is told truly: resident pages from the page cache, others direct.
pub fn reads_take_the_page_cache_when_it_is_warm(driver: IoDriver, _name: &str) {
    let mut bench = Bench::new(rig(driver));
    let root = bench.rig.root(0);
    let path = root.path().join("f");
    std::fs::write(&path, vec![5; 2 * EXTENT_LEN_BYTES]).unwrap();
    let plain = std::fs::File::open(&path).unwrap();
    let has_direct = ringseed_sys::file::dio_align(plain.as_fd()).unwrap().is_some();
    for (direct, warm) in [(true, true), (true, false), (false, false)] {
        ringseed_sys::file::drop_cache(plain.as_fd()).unwrap();
        if warm {
            std::fs::read(&path).unwrap();
        }
        let (root, rel) = (root.clone(), PathBuf::from("f"));
        let opened =
            bench.run(0, |id| Op::Open { id, root, path: rel, mode: OpenMode::Read, direct });
        let Done::Opened(Ok((file, len_bytes))) = opened else { panic!("{opened:?}") };
        assert_eq!(len_bytes, 2 * EXTENT_LEN_BYTES as u64);
        let buf = bench.rig.arena().try_take().unwrap();
        let (start, len, offset_bytes) = (0, EXTENT_LEN_BYTES, EXTENT_LEN_BYTES as u64);
        let done = bench.run(0, |id| Op::Read { id, file, offset_bytes, buf, start, len });
        let Done::Read(Ok((n, path)), buf) = done else { panic!("{done:?}") };
        assert!(n == len && buf.iter().all(|&byte| byte == 5));
        let expected = match (direct && has_direct, warm) {
            (true, true) => ReadPath::PageCache,
            (true, false) => ReadPath::Direct,
            (false, _) => ReadPath::Buffered,
        };
        assert_eq!(path, expected, "{driver:?} direct {direct} warm {warm}");
        bench.rig.push(0, Op::CloseFile { file });
    }
    bench.stop();
}

/// A connection that nobody answers ends at its time, and not before the others go on.
pub fn connecting_times_out(driver: IoDriver, _name: &str) {
    let mut bench = Bench::new(rig(driver));
    // A listener whose backlog is full answers no more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut timed_out = 0;
    for _ in 0..4 {
        let timeout = Duration::from_millis(50);
        match bench.run(1, |id| Op::Connect { id, addr, timeout }) {
            Done::Connected(Ok(_)) => {}
            Done::Connected(Err(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
                timed_out += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(timed_out > 0);
    bench.stop();
}

pub fn name_of(driver: IoDriver) -> &'static str {
    match driver {
        IoDriver::Auto | IoDriver::Uring => "uring",
        IoDriver::Epoll => "epoll",
        IoDriver::External(driver) => driver.name,
    }
}

pub fn it_says_its_name(driver: IoDriver, _name: &str) {
    let folder = fresh_folder();
    let node = node(driver, false, &extents(1), folder.join("n"));
    assert_eq!(node.running.driver, name_of(driver));
    assert!(!node.running.detail.is_empty());
    node.orders.lock().unwrap().stop();
    node.running.waker.wake();
    node.running.thread.join().unwrap().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

/// Runs the test `name` alone in a process of its own, for what belongs to the whole process. True in
/// that process, which goes on with the test.
pub fn is_alone(name: &str) -> bool {
    const CHILD: &str = "RINGSEED_TEST_ALONE";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    // The harness knows its tests without the name of their crate.
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--test-threads=1"]).env(CHILD, "1").output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
    false
}

fn busy(during: impl FnOnce()) -> Duration {
    let before = ringseed_sys::process::usage();
    during();
    let after = ringseed_sys::process::usage();
    (after.user + after.system) - (before.user + before.system)
}

/// Wants to be called every 20 milliseconds, and counts how often it is.
struct Clock {
    next: Instant,
    ticks: u32,
    polls: Sender<Instant>,
}

const TICK: Duration = Duration::from_millis(20);
const TICKS: u32 = 10;

impl Machine for Clock {
    fn handle(&mut self, completion: Completion, _now: Instant) {
        panic!("{completion:?}");
    }

    fn poll(&mut self, _ops: &mut crate::io::Ops, now: Instant) {
        self.polls.send(now).unwrap();
        if now >= self.next {
            self.ticks += 1;
            self.next += TICK;
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn handle_wake(&mut self, _now: Instant) {}

    fn is_stopped(&self) -> bool {
        self.ticks == TICKS
    }
}

/// A driver sleeps while nothing happens, wakes at the time that its machine names, and when it is woken.
pub fn an_idle_driver_sleeps(driver: IoDriver, name: &str) {
    if !is_alone(name) {
        return;
    }
    let mut bench = Bench::new(rig(driver));
    // With a connection at rest: a poll in flight costs nothing either.
    let (a, b) = bench.connect();
    let poll = bench.start(0, |id| Op::PollIn { id, sock: a });
    let busy_idle = busy(|| std::thread::sleep(Duration::from_millis(400)));
    assert!(busy_idle < Duration::from_millis(40), "{driver:?} spins: {busy_idle:?}");
    bench.rig.push(1, Op::Close { sock: b });
    assert!(matches!(bench.wait(0, poll), Done::Readable(_)));
    bench.rig.push(0, Op::Close { sock: a });
    // It has been woken before, and must not see that wake for ever.
    let busy_later = busy(|| std::thread::sleep(Duration::from_millis(400)));
    assert!(busy_later < Duration::from_millis(40), "{driver:?} spins: {busy_later:?}");
    bench.stop();
    let (polls, polled) = channel();
    let (listeners, thread_name) = (Vec::new(), "clock".to_owned());
    let config =
        DriverConfig { driver, listeners, arena: None, zero_copy_send: false, thread_name };
    let begun = Instant::now();
    let clock = move |_: &ringseed_sys::wake::Waker| Clock { next: begun + TICK, ticks: 0, polls };
    start(config, clock).unwrap().thread.join().unwrap().unwrap();
    assert!(begun.elapsed() >= TICKS * TICK);
    // A turn that ends a little early asks again: some more than the ticks, and not thousands.
    let polls = polled.try_iter().count();
    assert!(polls <= 10 * TICKS as usize, "{driver:?} polls {polls} times for {TICKS} ticks");
}

/// A process out of descriptors pauses accepting instead of spinning, and goes on when some are free.
/// In a process of its own, because the limit is one for all.
pub fn accepting_pauses_when_descriptors_run_out(driver: IoDriver, name: &str) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !is_alone(name) {
        return;
    }
    let mut bench = Bench::new(rig(driver));
    let addr = bench.rig.addr(0);
    let clients: Vec<_> = (0..12).map(|_| net::socket(addr, Blocking::Yes).unwrap()).collect();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 - 1;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 4), ..limit }).unwrap();
    for client in &clients {
        assert!(net::connect(client.as_fd(), addr).unwrap());
    }
    let accepted = |done| assert!(matches!(done, Done::Accepted { .. }));
    for _ in 0..2 {
        accepted(bench.wait(0, OpId(0)));
    }
    let busy = busy(|| std::thread::sleep(Duration::from_millis(400)));
    assert!(busy < Duration::from_millis(100), "{driver:?} spins: {busy:?}");
    setrlimit(Resource::Nofile, limit).unwrap();
    for _ in 2..clients.len() {
        accepted(bench.wait(0, OpId(0)));
    }
    drop(clients);
    bench.stop();
}
