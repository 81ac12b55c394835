//! The suite's rig over real drivers, and what only they can show.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringseed_sys::net::{self, Blocking};

use super::*;
use crate::config::IoDriver;
use crate::io::{DriverConfig, OpenMode, ReadPath, Running, SendBuf, SendPart, start};

struct Node {
    orders: Arc<Mutex<Orders>>,
    heard: Receiver<Completion>,
    running: Running,
    addr: SocketAddr,
    root: Arc<DirHandle>,
}

pub(super) struct RealRig {
    nodes: Vec<Node>,
    arena: Arena,
    folder: PathBuf,
}

/// /var/tmp, because /tmp may be a tmpfs without O_DIRECT.
fn fresh_folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ringseed-io-{}-{number}", std::process::id());
    let path = PathBuf::from("/var/tmp").join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

pub(super) fn rig(driver: IoDriver) -> Box<dyn Rig> {
    rig_of(driver, false)
}

fn rig_of(driver: IoDriver, zero_copy: bool) -> Box<RealRig> {
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
#[test]
fn reads_take_the_page_cache_when_it_is_warm() {
    for driver in [IoDriver::Uring, IoDriver::Epoll] {
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
}

/// A connection that nobody answers ends at its time, and not before the others go on.
#[test]
fn connecting_times_out() {
    for driver in [IoDriver::Uring, IoDriver::Epoll] {
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
}

/// Where io_uring is forbidden the engine runs on epoll; asked for io_uring it says why not. In a
/// process of its own, because the prohibition stays.
#[test]
fn epoll_takes_over_where_io_uring_is_forbidden() {
    const CHILD: &str = "RINGSEED_TEST_FORBIDDEN";
    if std::env::var_os(CHILD).is_none() {
        let name = "io::conformance::real::epoll_takes_over_where_io_uring_is_forbidden";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--test-threads=1"]).env(CHILD, "1");
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    ringseed_sys::process::forbid_io_uring().unwrap();
    let mut bench = Bench::new(rig(IoDriver::Auto));
    sockets::bytes_are_gathered_scattered_and_polled_for(&mut bench);
    files::odd_stretches_read_back(&mut bench);
    bench.stop();
    let config = DriverConfig {
        driver: IoDriver::Uring,
        listeners: Vec::new(),
        arena: None,
        zero_copy_send: false,
        thread_name: "refused".into(),
    };
    let (orders, told, _heard) = relay_parts();
    let error = start(config, move |_| Relay::new(orders, told)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("seccomp"), "{error}");
}

#[test]
fn each_driver_says_its_name() {
    for (driver, name) in [(IoDriver::Uring, "uring"), (IoDriver::Epoll, "epoll")] {
        let folder = fresh_folder();
        let node = node(driver, false, &extents(1), folder.join("n"));
        assert_eq!(node.running.driver, name);
        assert!(!node.running.detail.is_empty());
        node.orders.lock().unwrap().stop();
        node.running.waker.wake();
        node.running.thread.join().unwrap().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// A process out of descriptors pauses accepting instead of spinning, and goes on when some are free.
/// In a process of its own, because the limit is one for all.
#[test]
fn accepting_pauses_when_descriptors_run_out() {
    const CHILD: &str = "RINGSEED_TEST_DESCRIPTORS";
    const NAME: &str = "io::conformance::real::accepting_pauses_when_descriptors_run_out";
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", NAME, "--test-threads=1"]).env(CHILD, "1").output();
        let text = String::from_utf8_lossy(&output.as_ref().unwrap().stdout).into_owned();
        assert!(output.unwrap().status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    for driver in [IoDriver::Uring, IoDriver::Epoll] {
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
        let before = ringseed_sys::process::usage();
        std::thread::sleep(Duration::from_millis(400));
        let after = ringseed_sys::process::usage();
        let busy = (after.user + after.system) - (before.user + before.system);
        assert!(busy < Duration::from_millis(100), "{driver:?} spins: {busy:?}");
        setrlimit(Resource::Nofile, limit).unwrap();
        for _ in 2..clients.len() {
            accepted(bench.wait(0, OpId(0)));
        }
        drop(clients);
        bench.stop();
    }
}

/// Long sends go without copying until the kernel says that on loopback it copies; what arrives is the
/// same on both sides of that moment, and no buffer stays behind.
#[test]
fn what_is_sent_without_copying_arrives_whole() {
    let mut rig = rig_of(IoDriver::Uring, true);
    assert!(rig.nodes[0].running.detail.contains("zero-copy"), "{}", rig.nodes[0].running.detail);
    let addr = rig.addr(1);
    rig.push(0, Op::Connect { id: OpId(1), addr, timeout: Duration::from_secs(5) });
    let Done::Connected(Ok(out)) = rig.next(0).done else { panic!("not connected") };
    let Done::Accepted { sock: sink, .. } = rig.next(1).done else { panic!("not accepted") };
    for round in 0..40_u8 {
        let mut extent = rig.arena().try_take().unwrap();
        extent.fill(round);
        let part = SendPart::Extent { extent: extent.freeze(), start: 0, len: EXTENT_LEN_BYTES };
        let buf = SendBuf { small: Vec::new(), parts: vec![part] };
        rig.push(0, Op::Send { id: OpId(2), sock: out, buf });
        let mut left = EXTENT_LEN_BYTES;
        let mut back = Some(RecvBuf {
            small: Vec::new(),
            extents: vec![rig.arena().try_take().unwrap()],
            slots: vec![RecvSlot::Extent { extent: 0, start: 0, len: EXTENT_LEN_BYTES }],
        });
        while left > 0 {
            let buf = back.take().expect("given back below");
            rig.push(1, Op::Recv { id: OpId(3), sock: sink, buf });
            let Done::Received(Ok(n), buf) = rig.next(1).done else { panic!("nothing received") };
            assert!(buf.extents[0][..n].iter().all(|&byte| byte == round), "round {round}");
            left -= n;
            back = Some(buf);
        }
        let Done::Sent(Ok(()), buf) = rig.next(0).done else { panic!("not sent") };
        assert_eq!(buf.len_bytes(), EXTENT_LEN_BYTES);
    }
    rig.push(0, Op::Close { sock: out });
    rig.push(1, Op::Close { sock: sink });
    (rig as Box<dyn Rig>).stop();
}
