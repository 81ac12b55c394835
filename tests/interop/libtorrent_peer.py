"""libtorrent as a peer: `run` one torrent as seed or leech, `create` one, `infohashes` and `files` of one.

`run` takes a JSON object and prints one line per state, so that the test can follow: `listening PORT`,
`have BYTES`, `done`, `error TEXT`. It goes on seeding until it is killed. Every setting that is not named
there keeps libtorrent's default: encryption preferred, uTP on, DHT and local discovery on.
"""

import json
import os
import sys
import time

import libtorrent as lt


def say(text):
    print(text, flush=True)


def session(config):
    settings = {
        "listen_interfaces": config["listen"],
        "alert_mask": int(
            lt.alert.category_t.error_notification
            | lt.alert.category_t.status_notification
            | lt.alert.category_t.peer_notification
            | lt.alert.category_t.connect_notification
        ),
    }
    settings.update(config.get("settings", {}))
    ses = lt.session(settings)
    if "upload_rate_limit" in config.get("settings", {}):
        # Peers on private addresses are in a class of their own without limits.
        classes = lt.ip_filter()
        classes.add_rule("0.0.0.0", "255.255.255.255", 1)
        ses.set_peer_class_filter(classes)
    return ses


def add(ses, config):
    source = config["source"]
    if source.startswith("magnet:"):
        params = lt.parse_magnet_uri(source)
    else:
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(source)
    # Told once: telling it again would make it forget what it has learnt of a peer.
    params.peers = [(peer.rsplit(":", 1)[0].strip("[]"), int(peer.rsplit(":", 1)[1])) for peer in config["peers"]]
    params.save_path = config["folder"]
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    return ses.add_torrent(params)


def log(ses):
    for alert in ses.pop_alerts():
        print(f"{time.time():.3f}", type(alert).__name__, alert.message(), file=sys.stderr, flush=True)


def run(config):
    config = json.loads(config)
    ses = session(config)
    handle = add(ses, config)
    listening, done, told = False, False, -1
    # Of some files all that is wanted can be there without the rest (BEP 53).
    is_part = "&so=" in config["source"]
    while True:
        log(ses)
        if not listening and ses.is_listening():
            listening = True
            say(f"listening {ses.listen_port()}")
        status = handle.status()
        if status.errc.value() != 0:
            say(f"error {status.errc.message()}")
        if status.total_done != told:
            told = status.total_done
            say(f"have {told}")
        if not done and (status.is_finished if is_part else status.is_seeding):
            done = True
            handle.flush_cache()
            say("done")
        time.sleep(0.02)


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


def infohashes(torrent):
    info = lt.torrent_info(torrent)
    hashes = info.info_hashes()
    say(f"v1 {hashes.v1 if hashes.has_v1() else '-'}")
    say(f"v2 {hashes.v2 if hashes.has_v2() else '-'}")


def files(torrent):
    """A line per file with the number that it has in a link: `NUMBER PATH`, `pad` for a path of a pad."""
    listed = lt.torrent_info(torrent).files()
    for index in range(listed.num_files()):
        is_pad = listed.file_flags(index) & lt.file_storage.flag_pad_file
        say(f"{index} {'pad' if is_pad else listed.file_path(index)}")


if __name__ == "__main__":
    {"run": run, "create": create, "infohashes": infohashes, "files": files}[sys.argv[1]](*sys.argv[2:])
