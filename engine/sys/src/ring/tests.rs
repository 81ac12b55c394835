use super::*;
use crate::arena::EXTENT_LEN_BYTES;
use crate::buf::{RecvSlot, SendPart};
use crate::dir::DirHandle;
use crate::net::{self, Blocking};
use crate::test_dir::TestDir;
use crate::wake::Waker;
use std::os::fd::AsFd;
use std::path::Path;

fn next(ring: &mut Ring) -> Finished {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(finished) = ring.next_finished() {
            return finished;
        }
        assert!(Instant::now() < give_up, "nothing finishes");
        ring.wait(Some(give_up)).unwrap();
    }
}

fn pair(ring: &mut Ring) -> (Arc<OwnedFd>, Arc<OwnedFd>) {
    let listener = Arc::new(
        net::listen("127.0.0.1:0".parse().unwrap(), Blocking::Yes, net::DualStack::No).unwrap(),
    );
    let addr = net::local_addr(listener.as_fd()).unwrap();
    let accept = ring.start(1, Task::Accept { listener });
    let socket = Arc::new(net::socket(addr, Blocking::Yes).unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    ring.start(2, Task::Connect { socket: socket.clone(), addr, deadline });
    let (mut accepted, mut connected) = (None, false);
    while accepted.is_none() || !connected {
        match next(ring) {
            Finished { token: 1, outcome: Outcome::Accepted(Ok(fd)) } => accepted = Some(fd),
            Finished { token: 2, outcome: Outcome::Connected(Ok(())) } => connected = true,
            other => panic!("{other:?}"),
        }
    }
    ring.cancel(accept);
    let ended = next(ring);
    assert!(
        matches!(ended.outcome, Outcome::Accepted(Err(ref e)) if e.raw_os_error() == Some(libc::ECANCELED))
    );
    assert_eq!(ring.in_flight(), 0);
    (socket, Arc::new(accepted.unwrap()))
}

#[test]
fn blocks_are_gathered_and_scattered_in_every_mode() {
    for mode in [RingMode::DeferTaskrun, RingMode::CoopTaskrun, RingMode::Plain] {
        let ring = match Ring::with_mode(64, mode) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue, // an older kernel
            made => made.unwrap(),
        };
        stream_blocks(ring);
        // As before Linux 5.19, without multishot accept.
        let mut ring = Ring::with_mode(64, mode).unwrap();
        ring.accept_multishot = false;
        stream_blocks(ring);
    }
}

fn stream_blocks(mut ring: Ring) {
    let arena = Arena::new(8 * EXTENT_LEN_BYTES).unwrap();
    let (a, b) = pair(&mut ring);
    let mut extent = arena.try_take().unwrap();
    extent.fill(7);
    let extent = extent.freeze();
    let part = SendPart::Extent { extent, start: 0, len: EXTENT_LEN_BYTES };
    let parts = vec![SendPart::Small { start: 0, len: 5 }, part.clone(), part.clone(), part];
    let total = 5 + 3 * EXTENT_LEN_BYTES;
    ring.start(10, Task::PollIn { fd: b.clone() });
    ring.start(3, Task::Send { socket: a, buf: SendBuf { small: b"hello".to_vec(), parts } });
    let (mut got, mut sent) = (0, false);
    let mut buf = RecvBuf { small: vec![0; 5], ..RecvBuf::default() };
    buf.extents.extend([arena.try_take().unwrap(), arena.try_take().unwrap()]);
    buf.slots = vec![RecvSlot::Small { start: 0, len: 5 }];
    for extent in [0, 1] {
        buf.slots.push(RecvSlot::Extent { extent, start: 0, len: EXTENT_LEN_BYTES });
    }
    let mut buf = Some(buf);
    while got < total || !sent {
        match next(&mut ring).outcome {
            Outcome::Readable(Ok(())) => {
                ring.start(4, Task::Recv { socket: b.clone(), buf: buf.take().unwrap() });
            }
            Outcome::Received(Ok(n), back) => {
                if got == 0 {
                    assert_eq!(&back.small, b"hello");
                    assert!(n > 5 && back.extents[0][..n.min(1000) - 5].iter().all(|&b| b == 7));
                }
                got += n;
                if got < total {
                    ring.start(4, Task::Recv { socket: b.clone(), buf: back });
                }
            }
            Outcome::Sent(Ok(()), _) => sent = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, total);
    drop(ring);
    assert_eq!(arena.in_use(), 0);
}

fn small_recv(len: usize, fill_max: Duration) -> RecvBuf {
    RecvBuf {
        small: vec![0; len],
        slots: vec![RecvSlot::Small { start: 0, len }],
        fill_max: Some(fill_max),
        ..RecvBuf::default()
    }
}

fn received(ring: &mut Ring) -> (io::Result<usize>, Vec<u8>) {
    match next(ring).outcome {
        Outcome::Received(result, buf) => (result, buf.small),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_receive_to_be_filled_waits_for_the_last_byte() {
    let mut ring = Ring::new(64).unwrap();
    let (a, b) = pair(&mut ring);
    ring.start(4, Task::Recv { socket: b, buf: small_recv(8, Duration::from_secs(60)) });
    for bytes in [&b"two"[..], b"pa"] {
        rustix::io::write(&a, bytes).unwrap();
        ring.wait(Some(Instant::now() + Duration::from_millis(5))).unwrap();
        assert!(ring.next_finished().is_none(), "not full yet");
    }
    rustix::io::write(&a, b"rts").unwrap();
    let (result, bytes) = received(&mut ring);
    assert_eq!((result.unwrap(), &bytes[..]), (8, &b"twoparts"[..]));
    assert!(ring.deadlines.is_empty() && ring.in_flight() == 0);
}

#[test]
fn a_receive_to_be_filled_ends_with_what_came_in_its_time() {
    let mut ring = Ring::new(64).unwrap();
    let (a, b) = pair(&mut ring);
    let brief = Duration::from_millis(5);
    ring.start(4, Task::Recv { socket: b.clone(), buf: small_recv(8, brief) });
    rustix::io::write(&a, b"part").unwrap();
    let (result, bytes) = received(&mut ring);
    assert_eq!((result.unwrap(), &bytes[..4]), (4, &b"part"[..]));
    // Nothing came in its time: then it is over with the first bytes, as any receive.
    let started = Instant::now();
    ring.start(4, Task::Recv { socket: b.clone(), buf: small_recv(8, brief) });
    ring.wait(Some(started + 10 * brief)).unwrap();
    while started.elapsed() < 10 * brief {
        ring.wait(Some(started + 10 * brief)).unwrap();
    }
    assert!(ring.next_finished().is_none() && ring.deadlines.is_empty());
    rustix::io::write(&a, b"late").unwrap();
    assert_eq!(received(&mut ring).0.unwrap(), 4);
    // The end of the stream does not take away what came before it.
    ring.start(4, Task::Recv { socket: b.clone(), buf: small_recv(8, Duration::from_secs(60)) });
    rustix::io::write(&a, b"end").unwrap();
    drop(a);
    assert_eq!(received(&mut ring).0.unwrap(), 3);
    ring.start(4, Task::Recv { socket: b, buf: small_recv(8, Duration::from_secs(60)) });
    assert_eq!(received(&mut ring).0.unwrap(), 0);
    assert!(ring.deadlines.is_empty() && ring.in_flight() == 0);
}

#[test]
fn a_receive_to_be_filled_is_cancelled_like_any_other() {
    let mut ring = Ring::new(64).unwrap();
    let (a, b) = pair(&mut ring);
    let ticket =
        ring.start(4, Task::Recv { socket: b, buf: small_recv(8, Duration::from_secs(60)) });
    rustix::io::write(&a, b"part").unwrap();
    ring.wait(Some(Instant::now() + Duration::from_millis(5))).unwrap();
    ring.cancel(ticket);
    assert_eq!(received(&mut ring).0.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    assert!(ring.deadlines.is_empty() && ring.in_flight() == 0);
}

#[test]
fn cancelled_and_dropped_tasks_give_their_buffers_back() {
    let mut ring = Ring::new(64).unwrap();
    let arena = Arena::new(4 * EXTENT_LEN_BYTES).unwrap();
    let (_a, b) = pair(&mut ring);
    let recv = |extent| RecvBuf {
        small: Vec::new(),
        extents: vec![extent],
        slots: vec![RecvSlot::Extent { extent: 0, start: 0, len: 100 }],
        fill_max: None,
    };
    let buf = recv(arena.try_take().unwrap());
    let ticket = ring.start(5, Task::Recv { socket: b.clone(), buf });
    ring.wait(Some(Instant::now() + Duration::from_millis(5))).unwrap();
    assert!(ring.next_finished().is_none());
    ring.cancel(ticket);
    ring.cancel(ticket);
    match next(&mut ring).outcome {
        Outcome::Received(Err(error), buf) => {
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
            assert_eq!(buf.extents.len(), 1);
        }
        other => panic!("{other:?}"),
    }
    let buf = recv(arena.try_take().unwrap());
    ring.start(6, Task::Recv { socket: b, buf });
    assert_eq!(arena.in_use(), 1);
    drop(ring);
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn a_connection_nobody_answers_times_out() {
    let mut ring = Ring::new(64).unwrap();
    // A listener whose backlog is full answers no more; filled by connections nobody accepts.
    let listener = net::socket("127.0.0.1:0".parse().unwrap(), Blocking::Yes).unwrap();
    rustix::net::bind(&listener, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = net::local_addr(listener.as_fd()).unwrap();
    let mut open = Vec::new();
    let mut errors = Vec::new();
    for token in 0..4 {
        let socket = Arc::new(net::socket(addr, Blocking::Yes).unwrap());
        let deadline = Instant::now() + Duration::from_millis(60);
        ring.start(token, Task::Connect { socket: socket.clone(), addr, deadline });
        match next(&mut ring).outcome {
            Outcome::Connected(Ok(())) => open.push(socket),
            Outcome::Connected(Err(error)) => errors.push(error.kind()),
            other => panic!("{other:?}"),
        }
    }
    assert!(errors.contains(&io::ErrorKind::TimedOut), "{errors:?}");
}

#[test]
fn files_are_written_synced_and_read_by_registered_buffers_or_not() {
    let tmp = TestDir::on_disk();
    let root = DirHandle::open(tmp.path()).unwrap();
    let arena = Arena::new(8 * EXTENT_LEN_BYTES).unwrap();
    for register in [false, true] {
        let mut ring = Ring::new(64).unwrap();
        if register {
            // Half of the arena: extents on both sides of the border are used below.
            ring.register_arena(&arena, 4 * EXTENT_LEN_BYTES);
        }
        let file = DataFile::open(&root, Path::new("f"), true, true).unwrap().file;
        let file = Arc::new(file);
        let data: Vec<u8> = (0..5 * EXTENT_LEN_BYTES + 777).map(|i| (i / 3 % 253) as u8).collect();
        for (token, chunk) in data.chunks(EXTENT_LEN_BYTES).enumerate() {
            let mut extent = arena.try_take().unwrap();
            extent[..chunk.len()].copy_from_slice(chunk);
            let offset_bytes = (token * EXTENT_LEN_BYTES) as u64;
            let (file, buf, len) = (file.clone(), extent.freeze(), chunk.len());
            ring.start(token as u64, Task::Write { file, offset_bytes, buf, start: 0, len });
        }
        for _ in 0..6 {
            assert!(matches!(next(&mut ring).outcome, Outcome::Written(Ok(()), _)));
        }
        file.write_small(data.len() as u64, b"journal").unwrap();
        ring.start(1, Task::Sync { file: file.clone() });
        assert!(matches!(next(&mut ring).outcome, Outcome::Synced(Ok(()))));
        crate::file::drop_cache(file.as_fd()).unwrap();
        for token in 0..7 {
            let buf = arena.try_take().unwrap();
            let offset_bytes = token * EXTENT_LEN_BYTES as u64;
            let len = EXTENT_LEN_BYTES;
            ring.start(token, Task::Read { file: file.clone(), offset_bytes, buf, start: 0, len });
        }
        for _ in 0..7 {
            let finished = next(&mut ring);
            let Outcome::Read(Ok((n, path)), buf) = finished.outcome else { panic!() };
            let at = (finished.token as usize * EXTENT_LEN_BYTES).min(data.len() + 7);
            let end = (at + EXTENT_LEN_BYTES).min(data.len() + 7);
            assert_eq!(n, end - at);
            let whole = [data.as_slice(), b"journal"].concat();
            assert!(buf[..n] == whole[at..end]);
            assert_eq!(path == ReadPath::Direct, file.is_direct());
        }
        std::fs::remove_file(tmp.path().join("f")).unwrap();
    }
    assert_eq!(arena.in_use(), 0);
}

#[test]
fn bad_ranges_end_before_the_kernel_sees_them() {
    let tmp = TestDir::new();
    let root = DirHandle::open(tmp.path()).unwrap();
    let arena = Arena::new(EXTENT_LEN_BYTES).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let file = Arc::new(DataFile::open(&root, Path::new("f"), true, false).unwrap().file);
    let buf = arena.try_take().unwrap();
    ring.start(9, Task::Read { file, offset_bytes: 0, buf, start: 1, len: EXTENT_LEN_BYTES });
    assert_eq!(ring.in_flight(), 0);
    let finished = next(&mut ring);
    assert_eq!(finished.token, 9);
    assert!(
        matches!(finished.outcome, Outcome::Read(Err(e), _) if e.kind() == io::ErrorKind::InvalidInput)
    );
}

#[test]
fn another_thread_wakes_the_ring() {
    let mut ring = Ring::new(64).unwrap();
    let waker = Waker::new().unwrap();
    ring.start(1, Task::PollIn { fd: waker.shared_fd() });
    let remote = waker.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        remote.wake();
    });
    assert!(matches!(next(&mut ring).outcome, Outcome::Readable(Ok(()))));
    assert!(waker.take());
    thread.join().unwrap();
}

#[test]
fn more_tasks_than_entries_are_taken() {
    let mut ring = Ring::new(1).unwrap();
    let waker = Waker::new().unwrap();
    for token in 0..500 {
        ring.start(token, Task::PollIn { fd: waker.shared_fd() });
    }
    waker.wake();
    let mut seen = [false; 500];
    for _ in 0..500 {
        let finished = next(&mut ring);
        assert!(!std::mem::replace(&mut seen[finished.token as usize], true));
    }
    assert_eq!(ring.in_flight(), 0);
}

/// On loopback the kernel copies, so that this sees both the notices and the end of it.
#[test]
fn zero_copy_sends_arrive_whole_and_stop_where_the_kernel_copies() {
    let arena = Arena::new(40 * EXTENT_LEN_BYTES).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let (a, b) = pair(&mut ring);
    if !ring.use_zero_copy() {
        return; // before Linux 6.1
    }
    for round in 0..20_u8 {
        let mut extent = arena.try_take().unwrap();
        extent.fill(round);
        let part = SendPart::Extent { extent: extent.freeze(), start: 0, len: EXTENT_LEN_BYTES };
        let parts = vec![SendPart::Small { start: 0, len: 1 }, part];
        let buf = SendBuf { small: vec![round], parts };
        ring.start(3, Task::Send { socket: a.clone(), buf });
        let (mut got, mut is_sent) = (0, false);
        let slot = RecvSlot::Extent { extent: 0, start: 0, len: EXTENT_LEN_BYTES };
        let extents = vec![arena.try_take().unwrap()];
        let buf = RecvBuf { small: Vec::new(), extents, slots: vec![slot], fill_max: None };
        ring.start(4, Task::Recv { socket: b.clone(), buf });
        while got <= EXTENT_LEN_BYTES || !is_sent {
            match next(&mut ring).outcome {
                Outcome::Received(Ok(n), buf) => {
                    assert!(buf.extents[0][..n].iter().all(|&byte| byte == round));
                    got += n;
                    if got <= EXTENT_LEN_BYTES {
                        ring.start(4, Task::Recv { socket: b.clone(), buf });
                    }
                }
                Outcome::Sent(Ok(()), buf) => {
                    assert_eq!(buf.len_bytes(), EXTENT_LEN_BYTES + 1);
                    is_sent = true;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, EXTENT_LEN_BYTES + 1);
    }
    assert_eq!(ring.zero_copy(), ZeroCopyState::OffCopied);
    let give_up = Instant::now() + Duration::from_secs(10);
    while ring.in_flight() > 0 {
        assert!(Instant::now() < give_up, "a notice is missing");
        ring.wait(Some(Instant::now() + Duration::from_millis(10))).unwrap();
    }
    assert_eq!(arena.in_use(), 0);
}

/// The kernel reads from a buffer until the other end has taken it, long after the send is reported. It
/// stays, also when the connection is closed meanwhile, and closing is what frees it.
#[test]
fn zero_copy_buffers_outlive_their_report_but_not_their_connection() {
    let arena = Arena::new(4 * EXTENT_LEN_BYTES).unwrap();
    let mut ring = Ring::new(64).unwrap();
    let (a, b) = pair(&mut ring);
    if !ring.use_zero_copy() {
        return;
    }
    let extent = arena.try_take().unwrap().freeze();
    let part = SendPart::Extent { extent, start: 0, len: EXTENT_LEN_BYTES };
    let buf = SendBuf { small: Vec::new(), parts: vec![part] };
    let ticket = ring.start(3, Task::Send { socket: a, buf });
    match next(&mut ring).outcome {
        Outcome::Sent(Ok(()), buf) => drop(buf),
        other => panic!("{other:?}"),
    }
    ring.cancel(ticket); // nothing to cancel, and no second outcome
    drop(b);
    let give_up = Instant::now() + Duration::from_secs(10);
    while ring.in_flight() > 0 {
        assert!(Instant::now() < give_up, "the notice is missing");
        ring.wait(Some(Instant::now() + Duration::from_millis(10))).unwrap();
        assert!(ring.next_finished().is_none());
    }
    assert_eq!(arena.in_use(), 0);
}
