"""One libtorrent session as a process: gives what it has, or takes when it is told to.

Its one argument is a JSON object: `role` (`giver` or `taker`), `port`, `torrents` (paths), `place`
(the directory of the data), `peers` (ports of the loopback address) and `identity` (paths of
certificate, key and parameters, for torrents over TLS; or null).  It says `ready` once it listens;
a taker then waits for a line, and says `done` when every torrent is complete and verified.  It ends
when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import libtorrent as lt

MIB = 1 << 20

# libtorrent as fast as it goes between few peers on a fast network; see the README for the reasons.
SETTINGS: dict[str, Any] = {
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "in_enc_policy": 2,  # no obfuscation
    "out_enc_policy": 2,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
    "unchoke_slots_limit": -1,
    "mixed_mode_algorithm": 0,
    "connection_speed": 500,
    "smooth_connects": False,
    "tick_interval": 100,
    "hashing_threads": max(2, os.cpu_count() or 2),
    "aio_threads": 4,
    "max_queued_disk_bytes": 64 * MIB,
    "request_queue_time": 1,
    # With 4,096 the giver takes half as much processor time again.
    "max_out_request_queue": 500,
    "whole_pieces_threshold": 20,
    "send_buffer_low_watermark": MIB,
    "send_buffer_watermark": 8 * MIB,
    "send_buffer_watermark_factor": 150,
    "send_socket_buffer_size": 4 * MIB,
    "recv_socket_buffer_size": 4 * MIB,
}


def main() -> None:
    """Runs the session that the argument describes."""
    task = json.loads(sys.argv[1])
    over_tls = task["identity"] is not None
    session = lt.session(
        SETTINGS
        | {
            "listen_interfaces": f"127.0.0.1:{task['port']}{'s' if over_tls else ''}",
            "alert_mask": lt.alert.category_t.status_notification
            | lt.alert.category_t.error_notification
            | lt.alert.category_t.storage_notification,
        }
    )
    torrents = [lt.torrent_info(path) for path in task["torrents"]]
    wait_for(session, lt.listen_succeeded_alert, 1)
    gives = task["role"] == "giver"
    if not gives:
        print("ready", flush=True)
        sys.stdin.readline()
    for torrent in torrents:
        add(session, torrent, task, lt.torrent_flags.seed_mode if gives else 0)
    if gives:
        print("ready", flush=True)
    else:
        wait_for(session, lt.torrent_finished_alert, len(torrents))
        # Some of it may still be on its way to the files; the session ends after the last write.
        del session
        print("done", flush=True)
    sys.stdin.read()


def add(session: lt.session, torrent: lt.torrent_info, task: dict[str, Any], flags: int) -> None:
    """Adds a torrent that begins at once, and whose peers are known."""
    params = lt.add_torrent_params()
    params.ti = torrent
    params.save_path = task["place"]
    params.flags = flags
    if task["identity"] is not None:
        # Paused until it has its certificate, which it needs for its first connection.
        params.flags |= lt.torrent_flags.paused
    handle = session.add_torrent(params)
    if task["identity"] is not None:
        handle.set_ssl_certificate(*task["identity"])
        handle.resume()
    for port in task["peers"]:
        handle.connect_peer(("127.0.0.1", port))


def wait_for(session: lt.session, kind: type, count: int) -> None:
    """Waits for so many alerts of a kind; an error of any other ends the process."""
    while count > 0:
        session.wait_for_alert(60_000)
        for alert in session.pop_alerts():
            if isinstance(alert, kind):
                count -= 1
            elif isinstance(alert, (lt.listen_failed_alert, lt.torrent_error_alert)):
                sys.exit(str(alert))


if __name__ == "__main__":
    main()
