"""Programs that copy from one giver: nginx with curl, scp, and sendme."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from pathlib import Path

from cases import Case
from stage import START_LIMIT, Stage
from system import (
    Copies,
    System,
    copies_in,
    free_ports,
    new_directories,
    program,
    run_all,
    wait_for_port,
    without,
)

NGINX = """\
daemon off;
{user}
worker_processes auto;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    output_buffers 2 512k;
    server {{
        listen 127.0.0.1:{port} ssl;
        root {root};
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        ssl_buffer_size 16k;
    }}
}}
"""

SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {home}/host
AuthorizedKeysFile {home}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 64
Ciphers aes128-gcm@openssh.com
Subsystem sftp internal-sftp
"""


class Nginx(System):
    """nginx and curl over TLS 1.3: the least that moves a file protected.  Nothing is hashed."""

    name = "nginx+curl"
    wire = "TLS, AES-128-GCM"
    checks = "nothing"
    swarms = False

    def missing(self) -> str | None:
        return without(
            "nginx", "curl", "openssl", hint="apt install --no-install-recommends nginx-light curl"
        )

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        stage.call(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", home / "server.key", "-out", home / "server.pem", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
        )  # fmt: skip

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        (port,) = free_ports(1)
        user = "user root;" if os.geteuid() == 0 else ""
        config = NGINX.format(user=user, port=port, root=sources[0].parent)
        (home / "nginx.conf").write_text(config)
        server = stage.start(
            "giver", program("nginx"), "-e", "stderr", "-p", home, "-c", home / "nginx.conf"
        )
        wait_for_port(server, port)
        places = new_directories(stage, case)
        urls = [f"https://127.0.0.1:{port}/{source.name}" for source in sources]
        with stage.timed():
            run_all(
                [
                    stage.start(
                        "taker", program("curl"), "--disable", "--silent", "--show-error",
                        "--fail", "--cacert", home / "server.pem", "--noproxy", "*",
                        "--remote-name", url, cwd=place,
                    )
                    for place in places
                    for url in urls
                ]
            )  # fmt: skip
        return copies_in(places, sources)


class Scp(System):
    """scp from an sshd of its own, with keys of its own."""

    name = "scp"
    wire = "SSH, AES-128-GCM"
    checks = "nothing"
    swarms = False

    def missing(self) -> str | None:
        lacking = without(
            "scp", "sshd", "ssh-keygen", hint="apt install openssh-client openssh-server"
        )
        if lacking is None and os.geteuid() == 0 and not Path("/run/sshd").is_dir():
            return "sshd, run by root, needs /run/sshd: mkdir -m 755 /run/sshd"
        return lacking

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        for key in ("host", "user"):
            stage.call(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", home / key)

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        (port,) = free_ports(1)
        (home / "sshd.conf").write_text(SSHD.format(port=port, home=home))
        server = stage.start("giver", program("sshd"), "-D", "-e", "-f", home / "sshd.conf")
        wait_for_port(server, port)
        places = new_directories(stage, case)
        with stage.timed():
            run_all(
                [
                    stage.start(
                        "taker", program("scp"), "-F", "none", "-q", "-B", "-i", home / "user",
                        "-P", str(port), "-c", "aes128-gcm@openssh.com",
                        "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                        "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes",
                        f"{getpass.getuser()}@127.0.0.1:{source}", place,
                    )
                    for place in places
                    for source in sources
                ]
            )  # fmt: skip
        return copies_in(places, sources)


class Sendme(System):
    """sendme, which is iroh: QUIC and BLAKE3.  Without relays and without the Internet."""

    name = "sendme"
    wire = "QUIC, TLS 1.3"
    checks = "BLAKE3"
    swarms = False

    OPTIONS = (
        "--relay", "disabled", "--no-progress", "--magic-ipv4-addr", "127.0.0.1:0",
        "--magic-ipv6-addr", "[::1]:0",
    )  # fmt: skip

    def missing(self) -> str | None:
        return without("sendme", hint="cargo install --locked sendme")

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        """Needs nothing: the giver hashes the files when it starts."""

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        several = len(sources) > 1
        given = sources[0].parent if several else sources[0]
        giver = stage.start(
            "giver", program("sendme"), "send", *self.OPTIONS, "--ticket-type", "addresses", given,
            talks=True,
        )  # fmt: skip
        ticket = giver.expect(r"sendme receive (\S+)", START_LIMIT).group(1)
        places = new_directories(stage, case)
        with stage.timed():
            run_all(
                [
                    stage.start(
                        "taker", program("sendme"), "receive", *self.OPTIONS, ticket, cwd=place
                    )
                    for place in places
                ]
            )
        return copies_in([place / given.name if several else place for place in places], sources)
