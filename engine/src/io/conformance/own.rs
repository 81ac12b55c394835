//! The suite over the drivers of this crate, and what only they can show.

use std::time::Duration;

use super::*;
use crate::config::IoDriver;
use crate::driver_suite;
use crate::io::{DriverConfig, OpenMode, SendBuf, SendPart, start};

driver_suite!(real uring, IoDriver::Uring);
driver_suite!(real epoll, IoDriver::Epoll);
driver_suite!(sim, crate::io::sim::tests::rig());

/// Chance must not matter: the same contract under other seeds, with buffers that
/// hold little more than the suite expects of any socket.
#[test]
fn the_simulation_keeps_the_contract_whatever_the_seed() {
    for seed in 0..40 {
        let mut config = crate::io::sim::SimConfig::new(seed);
        config.socket_buffer_bytes = if seed % 2 == 0 { 256 * 1024 } else { 6000 };
        let mut bench = Bench::new(Box::new(crate::io::sim::tests::sim_rig(config)));
        sockets::bytes_are_gathered_scattered_and_polled_for(&mut bench);
        sockets::a_socket_moves_with_what_it_holds(&mut bench);
        sockets::closing_ends_what_is_in_flight(&mut bench);
        sockets::a_peer_that_closes_is_seen(&mut bench);
        sockets::refused_and_closed_tell_their_errors(&mut bench);
        files::odd_stretches_read_back(&mut bench);
        files::trees_are_removed_and_files_closed(&mut bench);
        bench.stop();
    }
}

/// Where io_uring is forbidden the engine runs on epoll; asked for io_uring it says why not. In a
/// process of its own, because the prohibition stays.
#[test]
fn epoll_takes_over_where_io_uring_is_forbidden() {
    let name = concat!(module_path!(), "::epoll_takes_over_where_io_uring_is_forbidden");
    if !real::is_alone(name) {
        return;
    }
    ringseed_sys::process::forbid_io_uring().unwrap();
    let mut bench = Bench::new(real::rig(IoDriver::Auto));
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

/// Without a ring the transfers of files are made by threads, of which there are so many and no more, however much
/// waits for them. In a process of its own, because threads belong to the whole process.
#[test]
fn epoll_reads_files_with_a_bounded_number_of_threads() {
    let name = concat!(module_path!(), "::epoll_reads_files_with_a_bounded_number_of_threads");
    if !real::is_alone(name) {
        return;
    }
    let disk_threads = || {
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
        };
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(of_task);
        tasks.filter(|name| name.starts_with("rs-disk")).count()
    };
    // A thread takes its name when it first runs, and is in the list for a moment after it was joined.
    let there_are = |count| {
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while disk_threads() != count && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(disk_threads(), count);
    };
    let mut bench = Bench::new(real::rig(IoDriver::Epoll));
    let root = bench.rig.root(0);
    let open =
        |id| Op::Open { id, root, path: "file".into(), mode: OpenMode::Write, direct: false };
    let Done::Opened(Ok((file, _))) = bench.run(0, open) else { panic!("it cannot be opened") };
    let extents: Vec<_> = std::iter::from_fn(|| bench.rig.arena().try_take()).take(48).collect();
    let writes: Vec<OpId> = (0..)
        .zip(extents)
        .map(|(at, buf)| {
            let (offset_bytes, len) = (at * EXTENT_LEN_BYTES as u64, EXTENT_LEN_BYTES);
            let buf = buf.freeze();
            bench.start(0, |id| Op::Write { id, file, offset_bytes, buf, start: 0, len })
        })
        .collect();
    // Of two drivers.
    there_are(2 * 2 * crate::io::DISK_THREADS);
    for id in writes {
        assert!(matches!(bench.wait(0, id), Done::Written(Ok(()), _)));
    }
    there_are(2 * 2 * crate::io::DISK_THREADS);
    bench.stop();
    there_are(0);
}

/// Long sends go without copying until the kernel says that on loopback it copies; what arrives is the
/// same on both sides of that moment, and no buffer stays behind.
#[test]
fn what_is_sent_without_copying_arrives_whole() {
    let mut rig = real::rig_of(IoDriver::Uring, true);
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
            fill_max: None,
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
