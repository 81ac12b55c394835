"""libtorrent checking and creating torrents, for the workload `recheck`: no network, all hashing threads.

    libtorrent_disk.py check DATA_DIR THREADS TORRENT...
    libtorrent_disk.py create PATH OUT KIND PIECE_LEN THREADS

Prints one line of JSON: seconds on the wall and of processor time for the work alone (neither the start
of Python nor the import), how many torrents were found complete, and libtorrent's version.
"""

import json
import os
import resource
import sys
import time

import libtorrent as lt


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def settings(threads):
    return {
        "listen_interfaces": "",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "hashing_threads": threads,
        "aio_threads": max(10, threads),
        # Blocks of 16 KiB that may be in flight while checking: 64 MiB, so that no thread waits.
        "checking_mem_usage": 4096,
        "active_checking": threads,
        "active_limit": 1_000_000,
        "active_seeds": 1_000_000,
        "alert_queue_size": 1_000_000,
        "alert_mask": int(lt.alert.category_t.status_notification | lt.alert.category_t.error_notification),
    }


def check(folder, threads, torrents):
    session = lt.session(settings(threads))
    params = []
    for torrent in torrents:
        one = lt.add_torrent_params()
        one.ti = lt.torrent_info(torrent)
        one.save_path = folder
        one.flags &= ~lt.torrent_flags.auto_managed
        one.flags &= ~lt.torrent_flags.paused
        params.append(one)
    wall, used = time.monotonic(), cpu()
    handles = [session.add_torrent(one) for one in params]
    waiting = len(handles)
    while waiting:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.torrent_checked_alert):
                waiting -= 1
            elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
                print(alert.message(), file=sys.stderr)
                sys.exit(1)
    wall, used = time.monotonic() - wall, cpu() - used
    complete = sum(1 for handle in handles if handle.status().is_seeding)
    return wall, used, complete


def create(path, out, kind, piece_len, threads):
    storage = lt.file_storage()
    lt.add_files(storage, path)
    flags = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": 0}[kind]
    torrent = lt.create_torrent(storage, piece_len, flags=flags)
    wall, used = time.monotonic(), cpu()
    lt.set_piece_hashes(torrent, os.path.dirname(os.path.abspath(path)))
    wall, used = time.monotonic() - wall, cpu() - used
    with open(out, "wb") as file:
        file.write(lt.bencode(torrent.generate()))
    return wall, used, 1


def main():
    if sys.argv[1] == "check":
        wall, used, complete = check(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        path, out, kind, piece_len, threads = sys.argv[2:7]
        wall, used, complete = create(path, out, kind, int(piece_len), int(threads))
    print(json.dumps({"wall": wall, "cpu": used, "complete": complete, "version": lt.version}))


main()
