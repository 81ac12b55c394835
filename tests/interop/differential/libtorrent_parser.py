"""libtorrent's parser on a pipe.

In: batches, each a count and so many torrents, every number and length 4 bytes big-endian. Out: per torrent one
line, `no MESSAGE`, or `ok V1 V2 PIECE_LENGTH PIECE_COUNT` with a tab and then per file that is neither pad nor
link `OFFSET LENGTH EXECUTABLE PATH`, the path in hex.

Second mode, `create`: lines of JSON with a folder, a piece length and a kind in; both info hashes out.
"""

import json
import os
import struct
import sys

import libtorrent as lt

IN, OUT = sys.stdin.buffer, sys.stdout.buffer
# The pad behind the last file is optional; we write none.
HYBRID = lt.create_torrent.canonical_files_no_tail_padding


def number():
    raw = IN.read(4)
    if len(raw) < 4:
        sys.exit(0)
    return struct.unpack(">I", raw)[0]


def hex_or_dash(digest):
    raw = digest.to_bytes()
    return raw.hex() if any(raw) else "-"


def describe(torrent):
    try:
        info = lt.load_torrent_buffer(torrent).ti
    except Exception as error:
        return "no " + str(error).replace("\n", " ")
    hashes = info.info_hashes()
    files = info.files()
    parts = [f"ok {hex_or_dash(hashes.v1)} {hex_or_dash(hashes.v2)} {info.piece_length()} {info.num_pieces()}"]
    absent = lt.file_storage.flag_pad_file | lt.file_storage.flag_symlink
    for file in range(files.num_files()):
        flags = files.file_flags(file)
        if flags & absent:
            continue
        executable = int(bool(flags & lt.file_storage.flag_executable))
        try:
            path = files.file_path(file).encode("utf-8", "surrogateescape")
        except UnicodeDecodeError as error:
            path = error.object
        parts.append(f"{files.file_offset(file)} {files.file_size(file)} {executable} {path.hex()}")
    return "\t".join(parts)


def parse():
    while True:
        torrents = [IN.read(number()) for _ in range(number())]
        for torrent in torrents:
            OUT.write(describe(torrent).encode("utf-8", "replace") + b"\n")
        OUT.flush()


def create():
    for line in IN:
        job = json.loads(line)
        storage = lt.file_storage()
        for path, length, executable in job["files"]:
            flags = lt.file_storage.flag_executable if executable else 0
            storage.add_file(path, length, flags)
        flags = {"v1": lt.create_torrent.v1_only, "v2": lt.create_torrent.v2_only, "hybrid": HYBRID}[job["kind"]]
        torrent = lt.create_torrent(storage, job["piece_length"], flags=flags)
        lt.set_piece_hashes(torrent, job["folder"])
        info = lt.load_torrent_buffer(lt.bencode(torrent.generate())).ti
        hashes = info.info_hashes()
        OUT.write(f"{hex_or_dash(hashes.v1)} {hex_or_dash(hashes.v2)}\n".encode())
        OUT.flush()


if __name__ == "__main__":
    {"parse": parse, "create": create}[sys.argv[1]]()
