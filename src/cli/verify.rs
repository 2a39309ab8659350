//! `mtq verify`: a file held against its metafile, without any network.
//!
//! It reads with all cores, says which pieces are right, and never writes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::args::VerifyArgs;
use super::exit::{Failure, status};
use super::{inspect, output, progress, text};
use crate::client::error::AgentError;
use crate::client::metafile;
use crate::metainfo::Metainfo;
use crate::swarm::hashing::HashError;
use crate::swarm::verified::{PieceState, Verified, verify_file};

/// Ranges of pieces that people are shown of each kind; scripts get all.
const SHOWN_RANGES: usize = 16;

/// Checks the file; returns the exit status.
///
/// # Errors
/// [`Failure`], also when the file is not what the metafile says.
pub fn run(args: &VerifyArgs) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("internal", error.to_string()))?;
    let found = runtime.block_on(check_until_interrupted(args));
    // A disk that does not answer must not hold up the end.
    runtime.shutdown_background();
    match found {
        Ok(Some(found)) => {
            let failure = found.failure();
            found.print(args.json, failure.as_ref());
            failure.map_or(Ok(0), Err)
        }
        Ok(None) => {
            eprintln!("interrupted");
            Ok(status::INTERRUPTED)
        }
        Err(failure) => {
            output::print("verify", &Err(failure.clone()), args.json);
            Err(failure)
        }
    }
}

/// Checks the file, unless a signal comes first.
async fn check_until_interrupted(args: &VerifyArgs) -> Result<Option<Found>, Failure> {
    let failed = |error: std::io::Error| Failure::new("internal", error.to_string());
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (owned, stopped) = (args.clone(), stop.clone());
    let mut work = tokio::task::spawn_blocking(move || check(&owned, &stopped));
    tokio::select! {
        found = &mut work => {
            let found = found.map_err(|error| Failure::new("internal", error.to_string()))?;
            return found.map(Some);
        }
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    stop.store(true, Ordering::Relaxed);
    tokio::select! {
        _ = work => {}
        // Once more means now.
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(None)
}

/// What was checked, and what came of it.
struct Found {
    meta: Metainfo,
    path: PathBuf,
    verified: Verified,
}

fn check(args: &VerifyArgs, stop: &AtomicBool) -> Result<Found, Failure> {
    let meta = inspect::load(&args.metafile).map_err(|failure| {
        let swapped = args.path.is_file() && metafile::read(&args.path).is_ok();
        if !swapped {
            return failure;
        }
        let (metafile, path) = (text::path(&args.path), text::path(&args.metafile));
        failure.hint(format!("the metafile comes first: mtq verify {metafile} {path}"))
    })?;
    let path = match args.path.is_dir() {
        true => args.path.join(meta.name.as_str()),
        false => args.path.clone(),
    };
    let layout = meta.manifest.layout();
    let bar = progress::bytes_bar(layout.size(), text::printable(meta.name.as_str()));
    let verified = verify_file(&path, &meta.manifest, &|done| {
        bar.set_position(done);
        !stop.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    match verified {
        Ok(verified) => Ok(Found { meta, path, verified }),
        Err(error) => Err(unreadable(&meta, &args.path, &path, error)),
    }
}

fn unreadable(meta: &Metainfo, given: &Path, path: &Path, error: HashError) -> Failure {
    let name = text::path(path);
    match error {
        HashError::NotAFile => Failure::new("not-a-file", format!("{name}: not a regular file")),
        HashError::Changed => changed(&name),
        error => {
            let failure = Failure::from(AgentError::Hash { path: path.to_owned(), error });
            let part = given.join(".mtq").join(format!("{}.part", meta.manifest.content_id()));
            match failure.code == "not-found" && part.is_file() {
                true => failure.hint(format!("what there is of it is {}", text::path(&part))),
                false => failure,
            }
        }
    }
}

fn changed(name: &str) -> Failure {
    Failure::new("changed", format!("{name} changed while it was read"))
        .hint("verify it again once it stays as it is")
}

impl Found {
    /// Bytes of the pieces that are right.
    fn good_bytes(&self) -> u64 {
        let layout = self.meta.manifest.layout();
        let pieces = layout.pieces().zip(&self.verified.pieces);
        pieces
            .filter(|(_, state)| **state == PieceState::Right)
            .map(|(piece, _)| u64::from(layout.len(piece)))
            .sum()
    }

    /// What is wrong, if anything is: the worst of it.
    fn failure(&self) -> Option<Failure> {
        let verified = &self.verified;
        let file = text::path(&self.path);
        let size = self.meta.manifest.layout().size();
        let all = pieces(verified.pieces.len() as u64);
        let too_long = bytes(verified.len.saturating_sub(size));
        let (wrong, missing) =
            (verified.count(PieceState::Wrong), verified.count(PieceState::Missing));
        let length = match verified.len {
            len if len > size => format!(", {too_long} too long"),
            len if len < size => format!(", {} too short", bytes(size - len)),
            _ => String::new(),
        };
        if verified.changed {
            return Some(changed(&file));
        }
        if let Some((piece, _)) = verified.ranges(PieceState::Contradicted).first() {
            let message = format!(
                "piece {piece} of {file} has the right BLAKE3 and another SHA-1: the hashes in the \
                 metafile are false"
            );
            return Some(Failure::new("false-manifest", message));
        }
        if wrong > 0 {
            let also = match missing {
                0 => String::new(),
                missing => format!(", {missing} missing"),
            };
            let message = format!("{file}: {wrong} of {all} wrong{also}{length}");
            return Some(Failure::new("mismatch", message));
        }
        if missing > 0 {
            let message = format!("{file}: {missing} of {all} missing, none wrong{length}");
            let failure = Failure::new("incomplete", message);
            let is_part = self.path.extension().is_some_and(|extension| extension == "part");
            return Some(match is_part {
                true => failure.hint("the same get goes on with it"),
                false => failure,
            });
        }
        if verified.len > size {
            let message = format!("{file} is {too_long} too long; its first {size} are right");
            return Some(Failure::new("mismatch", message));
        }
        if verified.sha1_matches == Some(false) {
            let message = format!(
                "{file}: every piece is right and the SHA-1 of the whole is not: the hashes in the \
                 metafile are false"
            );
            return Some(Failure::new("false-manifest", message));
        }
        None
    }

    fn print(&self, as_json: bool, failure: Option<&Failure>) {
        let mut out = std::io::stdout().lock();
        // A reader that went away is no failure.
        let _ = match (as_json, failure) {
            (true, _) => writeln!(out, "{}", output::line("verify", Some(&self.json()), failure)),
            (false, Some(_)) => writeln!(out, "{}", text::table(&self.rows())),
            (false, None) => {
                let layout = self.meta.manifest.layout();
                let count = pieces(u64::from(layout.piece_count()));
                writeln!(out, "ok: {}: {count}, {}", text::path(&self.path), bytes(layout.size()))
            }
        };
    }

    fn json(&self) -> Value {
        let (verified, manifest) = (&self.verified, &self.meta.manifest);
        let ranges = |state| {
            let ranges = verified.ranges(state).into_iter();
            ranges.map(|(first, last)| json!({"first": first, "last": last})).collect::<Vec<_>>()
        };
        let wrong = [PieceState::Wrong, PieceState::Contradicted];
        let mut wrong_ranges: Vec<_> = wrong.into_iter().flat_map(ranges).collect();
        wrong_ranges.sort_by_key(|range| range["first"].as_u64());
        json!({
            "path": text::lossy(&self.path),
            "name": self.meta.name,
            "content_id": manifest.content_id(),
            "size": manifest.layout().size(),
            "actual_size": verified.len,
            "pieces": verified.pieces.len(),
            "good_pieces": verified.count(PieceState::Right),
            "good_bytes": self.good_bytes(),
            "wrong_pieces": wrong.map(|state| verified.count(state)).iter().sum::<usize>(),
            "wrong": wrong_ranges,
            "missing_pieces": verified.count(PieceState::Missing),
            "missing": ranges(PieceState::Missing),
            "sha1_matches": verified.sha1_matches,
        })
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let verified = &self.verified;
        let size = self.meta.manifest.layout().size();
        let right = verified.count(PieceState::Right);
        let good = format!("{right} of {}", pieces(verified.pieces.len() as u64));
        let mut rows = vec![vec![
            "right".to_owned(),
            good,
            format!("{} of {}", self.good_bytes(), bytes(size)),
        ]];
        for (label, state) in [
            ("wrong", PieceState::Wrong),
            ("missing", PieceState::Missing),
            ("contradicted", PieceState::Contradicted),
        ] {
            let ranges = verified.ranges(state);
            if !ranges.is_empty() {
                let count = verified.count(state).to_string();
                rows.push(vec![label.to_owned(), count, listed(&ranges)]);
            }
        }
        rows
    }
}

fn pieces(count: u64) -> String {
    if count == 1 { "1 piece".to_owned() } else { format!("{count} pieces") }
}

fn bytes(count: u64) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

/// Ranges for people: `3, 5-6`, cut short when they are many.
fn listed(ranges: &[(u32, u32)]) -> String {
    let range = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let shown: Vec<_> = ranges.iter().take(SHOWN_RANGES).map(range).collect();
    match ranges.len().saturating_sub(SHOWN_RANGES) {
        0 => shown.join(", "),
        more => format!("{}, and {more} more ranges", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PIECE_LEN;
    use crate::manifest::testing::manifest_of;
    use PieceState::{Contradicted, Missing, Right, Wrong};

    fn found(pieces: [PieceState; 2], len: u64, changed: bool) -> Found {
        let (group, name) = ("lab".parse().expect("name"), "x".parse().expect("name"));
        let manifest = manifest_of(&vec![7; PIECE_LEN as usize + 1]);
        let meta = Metainfo { trackers: Vec::new(), group, name, manifest };
        let verified = Verified { len, pieces: pieces.into(), sha1_matches: None, changed };
        Found { meta, path: "x".into(), verified }
    }

    #[test]
    fn the_worst_is_said() {
        let size = u64::from(PIECE_LEN) + 1;
        for (pieces, len, changed, expected) in [
            ([Right, Right], size, false, None),
            ([Right, Wrong], size, true, Some(("changed", "x changed while it was read"))),
            ([Right, Right], size, true, Some(("changed", "x changed while it was read"))),
            ([Right, Wrong], size, false, Some(("mismatch", "x: 1 of 2 pieces wrong"))),
            (
                [Wrong, Missing],
                size - 1,
                false,
                Some(("mismatch", "x: 1 of 2 pieces wrong, 1 missing, 1 byte too short")),
            ),
            (
                [Missing, Right],
                size + 2,
                false,
                Some(("incomplete", "x: 1 of 2 pieces missing, none wrong, 2 bytes too long")),
            ),
            (
                [Wrong, Contradicted],
                size,
                false,
                Some((
                    "false-manifest",
                    "piece 1 of x has the right BLAKE3 and another SHA-1: the hashes in the metafile \
                     are false",
                )),
            ),
        ] {
            let failure = found(pieces, len, changed).failure();
            let said = failure.as_ref().map(|f| (f.code.as_str(), f.message.as_str()));
            assert_eq!(said, expected);
            assert!(failure.is_none_or(|failure| failure.status == status::INTEGRITY));
        }
    }

    #[test]
    fn many_ranges_are_cut_short() {
        assert_eq!(listed(&[(3, 3), (5, 6)]), "3, 5-6");
        let many: Vec<_> = (0..20).map(|i| (2 * i, 2 * i)).collect();
        assert!(listed(&many).ends_with("28, 30, and 4 more ranges"), "{}", listed(&many));
    }
}
