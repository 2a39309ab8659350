//! `mtq inspect`: what a metafile says, for people, for scripts, and for BitTorrent.
//!
//! It reads that one file and nothing else: no tracker is asked, and no data looked at.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::Path;

use serde::{Serialize, Serializer};

use super::args::InspectArgs;
use super::exit::Failure;
use super::{output, text};
use crate::client::metafile;
use crate::hash::{Blake3Hash, InfoHash, Sha1Hash};
use crate::limits::PIECE_LEN;
use crate::manifest::{ContentId, Manifest};
use crate::metainfo::Metainfo;
use crate::name::{FileName, GroupName};
use crate::torrent::{Torrent, TorrentInfoHash};
use crate::tracker_link::TrackerLink;

/// Shows a metafile, or turns it into a `.torrent` file on standard output.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let loaded = load(&args.metafile);
    if args.json {
        return match loaded {
            Ok(meta) => {
                output::print_streamed("inspect", &Shown::of(&meta, args.pieces));
                Ok(())
            }
            Err(failure) => {
                output::print("inspect", &Err(failure.clone()), true);
                Err(failure)
            }
        };
    }
    let meta = loaded?;
    if args.torrent {
        return write_torrent(&meta, &args.metafile);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if args.pieces {
        piece_rows(&meta.manifest).try_for_each(|row| row.write(&mut out))
    } else {
        writeln!(out, "{}", text::table(&rows(&meta)))
    };
    finished(written.and_then(|()| out.flush()))
}

/// Reads a metafile, or says what is wrong with it and, where it can be told, which one was meant.
///
/// # Errors
/// [`Failure`].
pub fn load(path: &Path) -> Result<Metainfo, Failure> {
    if path.is_dir() {
        let message = format!("{}: a directory, not a .mtorrent file", text::path(path));
        return Err(Failure::new("not-a-file", message));
    }
    metafile::read(path).map_err(|error| {
        let failure = Failure::from(error);
        let beside = metafile::beside(path);
        if failure.code == "bad-metafile" && beside.is_file() {
            return failure.hint(format!("its metafile is {}", text::path(&beside)));
        }
        failure
    })
}

/// A reader that went away has what it wanted; anything else is a failure.
fn finished(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let code = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no-space",
                _ => "disk",
            };
            Err(Failure::new(code, format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn write_torrent(meta: &Metainfo, metafile: &Path) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        let message = "a .torrent file is binary and is not written to a terminal";
        let metafile = text::path(metafile);
        let hint = format!("put it in a file: mtq inspect --torrent {metafile} > FILE.torrent");
        return Err(Failure::usage(message).hint(hint));
    }
    if meta.manifest.layout().is_empty() {
        eprintln!("warning: the file is empty, and many clients of BitTorrent take no empty files");
    }
    let torrent = Torrent::new(&meta.name, &meta.manifest);
    finished(out.write_all(torrent.as_bytes()).and_then(|()| out.flush()))
}

fn rows(meta: &Metainfo) -> Vec<Vec<String>> {
    let (head, layout) = (meta.manifest.head(), meta.manifest.layout());
    let (size, pieces) = (layout.size(), layout.piece_count());
    let torrent = Torrent::new(&meta.name, &meta.manifest);
    let mut rows: Vec<_> = [
        ("name", text::printable(meta.name.as_str())),
        ("group", meta.group.to_string()),
        ("size", format!("{} ({size} bytes)", text::size(size))),
        ("pieces", format!("{pieces} of {}", text::size(u64::from(PIECE_LEN)))),
        ("SHA-1", head.sha1().to_string()),
        ("info hash", head.info_hash().to_string()),
        ("BLAKE3", head.blake3().to_string()),
        ("content id", meta.manifest.content_id().to_string()),
        ("BitTorrent info hash", torrent.info_hash().to_string()),
    ]
    .map(|(label, value)| vec![label.to_owned(), value])
    .into();
    for (index, link) in meta.trackers.iter().enumerate() {
        let label = if index == 0 { "trackers" } else { "" };
        rows.push(vec![label.to_owned(), text::printable(&link.to_string())]);
    }
    rows
}

/// What a metafile says, as a script reads it.
#[derive(Serialize)]
struct Shown<'a> {
    blake3: Blake3Hash,
    content_id: ContentId,
    group: &'a GroupName,
    info_hash: InfoHash,
    name: &'a FileName,
    piece_hashes: Option<Pieces<'a>>,
    piece_length: u32,
    pieces: u32,
    sha1: Sha1Hash,
    size: u64,
    torrent_info_hash: TorrentInfoHash,
    trackers: &'a [TrackerLink],
}

impl<'a> Shown<'a> {
    fn of(meta: &'a Metainfo, with_pieces: bool) -> Self {
        let head = meta.manifest.head();
        Self {
            blake3: head.blake3(),
            content_id: meta.manifest.content_id(),
            group: &meta.group,
            info_hash: head.info_hash(),
            name: &meta.name,
            piece_hashes: with_pieces.then_some(Pieces(&meta.manifest)),
            piece_length: PIECE_LEN,
            pieces: head.layout().piece_count(),
            sha1: head.sha1(),
            size: head.layout().size(),
            torrent_info_hash: Torrent::new(&meta.name, &meta.manifest).info_hash(),
            trackers: &meta.trackers,
        }
    }
}

/// All pieces of a manifest, which may be millions: never copied, written one by one.
struct Pieces<'a>(&'a Manifest);

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(piece_rows(self.0))
    }
}

#[derive(Serialize)]
struct PieceRow {
    blake3: Blake3Hash,
    index: u32,
    length: u32,
    offset: u64,
    sha1: Sha1Hash,
}

impl PieceRow {
    fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let Self { blake3, index, length, offset, sha1 } = self;
        writeln!(out, "{index} {offset} {length} {sha1} {blake3}")
    }
}

fn piece_rows(manifest: &Manifest) -> impl Iterator<Item = PieceRow> {
    let layout = manifest.layout();
    layout.pieces().map(move |piece| PieceRow {
        blake3: manifest.piece(piece).blake3,
        index: piece.get(),
        length: layout.len(piece),
        offset: layout.offset(piece),
        sha1: manifest.piece(piece).sha1,
    })
}
