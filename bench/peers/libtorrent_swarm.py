"""libtorrent seeding or fetching torrents, for the workloads that move data.

    libtorrent_swarm.py CONFIG.json

CONFIG: role (seed, leech), tuned, listen, torrents, folder, peers. Prints `begin` when Python and the library
are loaded, `seeding` when a seed has everything, `done` when a leech has everything verified and handed to
the system. It goes on serving until it is killed.
"""

import json
import sys

import libtorrent as lt


def say(text):
    print(text, flush=True)


def settings(config):
    found = {
        "listen_interfaces": config["listen"],
        "outgoing_interfaces": config["listen"].rsplit(":", 1)[0],
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        # Plain text, as everybody here.
        "in_enc_policy": int(lt.enc_policy.disabled),
        "out_enc_policy": int(lt.enc_policy.disabled),
        "allow_multiple_connections_per_ip": True,
        # Nobody is choked to make room for others.
        "unchoke_slots_limit": -1,
        "active_downloads": -1,
        "active_seeds": -1,
        "active_limit": 1_000_000,
        "active_checking": 16,
        "connections_limit": 8000,
        "alert_queue_size": 1_000_000,
        "alert_mask": int(
            lt.alert.category_t.status_notification
            | lt.alert.category_t.error_notification
            | lt.alert.category_t.storage_notification
        ),
    }
    if config["tuned"]:
        found.update({
            "hashing_threads": 2,
            "send_buffer_watermark": 8 << 20,
            "send_buffer_low_watermark": 1 << 20,
            "send_buffer_watermark_factor": 150,
            "recv_socket_buffer_size": 4 << 20,
            "send_socket_buffer_size": 4 << 20,
            "max_out_request_queue": 1500,
            "max_queued_disk_bytes": 256 << 20,
            "disk_disable_copy_on_write": True,
        })
    return found


def known(session, found):
    names = set(session.get_settings())
    for name in list(found):
        if name not in names:
            del found[name]
    return found


def main():
    with open(sys.argv[1]) as file:
        config = json.load(file)
    wanted = settings(config)
    torrents = [lt.load_torrent_file(path) for path in config["torrents"]]
    say("begin")
    session = lt.session({"listen_interfaces": config["listen"], "enable_dht": False, "enable_lsd": False,
                          "enable_upnp": False, "enable_natpmp": False})
    session.apply_settings(known(session, wanted))
    seeds = config["role"] == "seed"
    peers = [(peer.rsplit(":", 1)[0], int(peer.rsplit(":", 1)[1])) for peer in config["peers"]]
    handles = []
    for params in torrents:
        params.save_path = config["folder"]
        params.peers = peers
        params.flags &= ~lt.torrent_flags.auto_managed
        params.flags &= ~lt.torrent_flags.paused
        if seeds:
            # It trusts that everything is there: the start of a seed is not what is measured.
            params.flags |= lt.torrent_flags.seed_mode
        handles.append(session.add_torrent(params))
    if seeds:
        say("seeding")
    unfinished, flushed, is_told = len(handles), set(), False
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert)):
                print(alert.message(), file=sys.stderr)
                sys.exit(1)
            if seeds:
                continue
            if isinstance(alert, lt.torrent_finished_alert):
                unfinished -= 1
                alert.handle.flush_cache()
            elif isinstance(alert, lt.cache_flushed_alert):
                # Everything that it had to write before is written.
                flushed.add(str(alert.handle.info_hashes().get_best()))
        if not is_told and not seeds and unfinished == 0 and len(flushed) == len(handles):
            is_told = True
            say("done")



main()
