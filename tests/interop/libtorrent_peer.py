"""libtorrent as a peer on loopback: `create`, `seed` and `leech`, each one torrent.

Prints one line per state, so that the test can follow: `port N`, `seeding`, `done`, `error TEXT`.
"""

import os
import sys
import time

import libtorrent as lt


def session():
    settings = {
        "listen_interfaces": "127.0.0.1:0",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "out_enc_policy": int(lt.enc_policy.disabled),
        "in_enc_policy": int(lt.enc_policy.disabled),
        "allow_multiple_connections_per_ip": True,
        "alert_mask": int(lt.alert.category_t.error_notification | lt.alert.category_t.status_notification),
    }
    return lt.session(settings)


def say(text):
    print(text, flush=True)


def add(ses, torrent, folder):
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = folder
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    return ses.add_torrent(params)


def fail_on_errors(ses):
    for alert in ses.pop_alerts():
        if alert.category() & lt.alert.category_t.error_notification:
            say(f"error {alert.message()}")


def create(path, out, kind, piece_len):
    storage = lt.file_storage()
    lt.add_files(storage, path)
    flags = {
        "v1": lt.create_torrent.v1_only,
        "v2": lt.create_torrent.v2_only,
        "hybrid": 0,
    }[kind]
    torrent = lt.create_torrent(storage, int(piece_len), flags=flags)
    lt.set_piece_hashes(torrent, os.path.dirname(os.path.abspath(path)))
    with open(out, "wb") as file:
        file.write(lt.bencode(torrent.generate()))
    say("done")


def seed(torrent, folder):
    ses = session()
    handle = add(ses, torrent, folder)
    while not handle.status().is_seeding:
        fail_on_errors(ses)
        time.sleep(0.02)
    say(f"port {ses.listen_port()}")
    while True:
        fail_on_errors(ses)
        time.sleep(0.2)


def leech(source, folder, *peers):
    ses = session()
    if source.startswith("magnet:"):
        params = lt.parse_magnet_uri(source)
        params.save_path = folder
        params.flags &= ~lt.torrent_flags.auto_managed
        params.flags &= ~lt.torrent_flags.paused
        handle = ses.add_torrent(params)
    else:
        handle = add(ses, source, folder)
    addresses = [(peer.rsplit(":", 1)[0], int(peer.rsplit(":", 1)[1])) for peer in peers]
    last_dial = 0.0
    while not handle.status().is_seeding:
        fail_on_errors(ses)
        if time.time() - last_dial > 1.0:
            last_dial = time.time()
            for address in addresses:
                handle.connect_peer(address)
        time.sleep(0.02)
    say("done")
    # What is written must reach the files before they are compared.
    ses.pause()
    ses.remove_torrent(handle)
    time.sleep(0.3)


def infohashes(torrent):
    info = lt.torrent_info(torrent)
    hashes = info.info_hashes()
    say(f"v1 {hashes.v1 if hashes.has_v1() else '-'}")
    say(f"v2 {hashes.v2 if hashes.has_v2() else '-'}")


if __name__ == "__main__":
    {"create": create, "seed": seed, "leech": leech, "infohashes": infohashes}[sys.argv[1]](*sys.argv[2:])
