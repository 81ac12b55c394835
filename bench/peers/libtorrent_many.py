"""Adds every .torrent of a folder to one libtorrent session in seed mode; prints bytes of memory and
microseconds per torrent."""

import os
import sys
import time

import libtorrent as lt


def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    folder, data = sys.argv[1], sys.argv[2]
    session = lt.session({
        "listen_interfaces": "127.0.0.1:0",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": 0,
    })
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    warm, rest = paths[:64], paths[64:]
    handles = []

    def add(path):
        params = lt.load_torrent_file(path)
        params.save_path = data
        params.flags |= lt.torrent_flags.seed_mode
        params.flags &= ~lt.torrent_flags.auto_managed
        params.flags &= ~lt.torrent_flags.paused
        handles.append(session.add_torrent(params))

    for path in warm:
        add(path)
    session.get_torrent_status(lambda status: True)
    before, began = rss(), time.monotonic()
    for path in rest:
        add(path)
    session.get_torrent_status(lambda status: False)
    seconds = time.monotonic() - began
    time.sleep(1)
    print((rss() - before) / len(rest), seconds * 1e6 / len(rest))
    sys.stdout.flush()
    # Taking the session down politely takes longer than all of the above.
    os._exit(0)


main()
