//! What `share`, `get` and `wait` do: of one file, and of many at once.
//!
//! Many are one answer: a row for each, and of those that went wrong the first is the command's failure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::exit::Failure;
use super::output::Answer;
use super::request::Request;
use super::text;
use super::transfers::{self, LISTED};
use crate::client::agent::Agent;
use crate::client::error::AgentError;
use crate::client::many::{StartedMany, Which};
use crate::client::metafile::MetafileTo;
use crate::client::report::{Shared, Started};
use crate::limits::MAX_REQUEST_LINE;
use crate::name::{FileName, GroupName, Selector};
use crate::tracker::message::Matching;

/// Bytes of a list of names: as many as fit into a request, of which some take two.
pub const MAX_LIST_LEN: u64 = MAX_REQUEST_LINE as u64 / 4;

/// What stands for standard input.
pub const STANDARD_INPUT: &str = "-";

/// How many files are named by one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Many {
    /// By a pattern.
    Matching(Matching),
    /// By a file of names.
    List,
}

/// Shares one file, or several.
///
/// # Errors
/// [`Failure`].
pub async fn share(
    agent: &Agent,
    request: &Request,
    mut words: Vec<PathBuf>,
    group: Option<GroupName>,
    name: Option<FileName>,
    mtorrent: Option<PathBuf>,
) -> Result<Answer, Failure> {
    let group = match group {
        Some(group) => group,
        None if words.len() > 1 => {
            let word = words.pop().unwrap_or_default();
            let word = word.to_string_lossy();
            word.parse().map_err(|e| bad_name(&word, &e))?
        }
        None => default_group(request)?,
    };
    if words.len() > 1 && (name.is_some() || mtorrent.is_some()) {
        let message = "--name and --mtorrent are for one file";
        return Err(Failure::usage(message).hint("--group GROUP names the group, not a word"));
    }
    let metafile = match (mtorrent, &request.mtorrent_dir) {
        (Some(file), _) => MetafileTo::File(file),
        (None, Some(directory)) => MetafileTo::Directory(directory.clone()),
        (None, None) => MetafileTo::Beside,
    };
    let [path] = words.as_slice() else {
        return share_many(agent, &words, group, &metafile).await;
    };
    let shared = agent.share(path, group, name, metafile).await?;
    let mut text = format!(
        "sharing {} ({}) in {}",
        shared.name,
        text::size(shared.manifest.layout().size()),
        shared.group
    );
    if let Some(metafile) = &shared.metafile {
        text += &format!("\nmetafile {}", text::path(metafile));
    }
    Ok(Answer::new(shared_json(&shared), text).warn_if(shared.warning))
}

async fn share_many(
    agent: &Agent,
    paths: &[PathBuf],
    group: GroupName,
    metafile: &MetafileTo,
) -> Result<Answer, Failure> {
    let all = agent.share_many(paths, group.clone(), metafile).await?;
    let (mut rows, mut failures, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let (mut count, mut size) = (0, 0);
    for (path, shared) in paths.iter().zip(all) {
        let row = match shared {
            Ok(shared) => {
                (count, size) = (count + 1, size + shared.manifest.layout().size());
                let mut row = shared_json(&shared);
                row["error"] = Value::Null;
                warnings.extend(shared.warning);
                row
            }
            Err(error) => {
                let failure = Failure::from(error);
                let row = json!({"path": text::lossy(path), "error": failure.json()});
                failures.push((None, failure));
                row
            }
        };
        rows.push(row);
    }
    let text = format!("sharing {} ({}) in {group}", text::count(count, "file"), text::size(size));
    let json = json!({"group": group, "count": count, "size": size, "shares": rows});
    // Said of each, it is said once.
    warnings.sort();
    warnings.dedup();
    let mut answer = Answer::new(json, text);
    answer.warnings = bounded(warnings);
    Ok(in_part(answer, "shared", paths.len(), failures))
}

/// Begins one download.
///
/// # Errors
/// [`Failure`].
pub async fn get(
    agent: &Agent,
    source: &str,
    file: &str,
    dest: Option<&str>,
    wait: bool,
) -> Result<Answer, Failure> {
    let started = match dest {
        None if source.ends_with(".mtorrent") => {
            agent.get_metafile(Path::new(source), Path::new(file)).await?
        }
        None => {
            return Err(Failure::usage("get takes GROUP NAME DEST, or FILE.mtorrent DEST"));
        }
        Some(dest) => {
            let group: GroupName = source.parse().map_err(|e| bad_name(source, &e))?;
            let file: Selector = file.parse().map_err(|e| bad_name(file, &e))?;
            agent.get(group, file, Path::new(dest)).await?
        }
    };
    let warning = started.warning.clone();
    let mut answer = Answer::new(started_json(&started), started_text(&started));
    if wait {
        let which = (started.group, vec![Selector::Id(started.content.into())]);
        let over = self::wait(agent, Some(which), None).await?;
        answer.json["downloads"] = over.json["downloads"].clone();
        answer.text = over.text;
    }
    Ok(answer.warn_if(warning))
}

/// Begins many downloads at once.
///
/// # Errors
/// [`Failure`] when none begins.
pub async fn get_many(
    agent: &Agent,
    request: &Request,
    many: Many,
    group: &str,
    word: &str,
    dest: Option<&str>,
    wait: bool,
) -> Result<Answer, Failure> {
    let Some(dest) = dest else {
        return Err(Failure::usage("get takes GROUP, what is wanted of it, and DEST"));
    };
    let group: GroupName = group.parse().map_err(|e| bad_name(group, &e))?;
    let which = match many {
        Many::Matching(matching) => Which::Matching { pattern: word.to_owned(), matching },
        Many::List => Which::Listed(listed(request, word)?),
    };
    let begun = agent.get_many(group.clone(), which, Path::new(dest)).await?;
    let mut answer = begun_answer(begun);
    if wait {
        let rows = answer.json["files"].as_array().into_iter().flatten();
        let ids = rows.filter_map(|row| row["content_id"].as_str());
        let ids: Vec<Selector> = ids.filter_map(|id| format!("id:{id}").parse().ok()).collect();
        let over = self::wait(agent, Some((group, ids)), None).await?;
        answer.json["downloads"] = over.json["downloads"].clone();
        answer.text = over.text;
        answer.failure = answer.failure.or(over.failure);
    }
    Ok(answer)
}

/// The names in a list.
fn listed(request: &Request, word: &str) -> Result<Vec<Selector>, Failure> {
    let text = match (word, &request.input) {
        (STANDARD_INPUT, Some(text)) => text.clone(),
        (STANDARD_INPUT, None) => {
            let message = "standard input is not at hand here";
            return Err(Failure::usage(message).hint("mtq client get --list GROUP - DEST reads it"));
        }
        (path, _) => read_text(Path::new(path), MAX_LIST_LEN)?,
    };
    let names =
        text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty());
    let files = names.map(|name| name.parse().map_err(|e| bad_name(name, &e)));
    let files: Vec<_> = files.collect::<Result<_, _>>()?;
    match files.is_empty() {
        true => Err(Failure::usage("the list names no files").hint("it has one name a line")),
        false => Ok(files),
    }
}

fn begun_answer(begun: StartedMany) -> Answer {
    let StartedMany { group, directory, files, warning } = begun;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    let (mut count, mut here, mut size, mut stored_bytes) = (0, 0, 0, 0);
    let all = files.len();
    for (asked, started) in files {
        let mut row = match started {
            Ok(started) => {
                (count, size) = (count + 1, size + started.size);
                stored_bytes += started.stored_bytes;
                here += usize::from(started.stored_bytes == started.size && started.size > 0);
                let mut row = started_json(&started);
                row["error"] = Value::Null;
                row
            }
            Err(error) => {
                let failure = Failure::from(error);
                let row = json!({
                    "download": null, "group": group, "name": null, "path": null,
                    "content_id": null, "size": null, "stored_bytes": null, "warning": null,
                    "error": failure.json(),
                });
                failures.push((Some(asked.clone()), failure));
                row
            }
        };
        row["asked"] = json!(asked);
        rows.push(row);
    }
    let path = text::path(&directory);
    let mut text = match here == count {
        true => format!("{} are already in {path}", text::count(count, "file")),
        false => format!(
            "downloading {} ({}) from {group} to {path}",
            text::count(count - here, "file"),
            text::size(size - stored_bytes)
        ),
    };
    if here > 0 && here < count {
        text += &format!("; {} are there already", text::count(here, "file"));
    }
    let json = json!({
        "group": group, "path": text::lossy(&directory), "count": count, "size": size,
        "stored_bytes": stored_bytes, "files": rows, "warning": warning,
    });
    in_part(Answer::new(json, text).warn_if(warning), "downloaded", all, failures)
}

/// The same answer where something went wrong: each is told, and the first is the command's failure.
fn in_part(
    mut answer: Answer,
    done: &str,
    all: usize,
    failures: Vec<(Option<String>, Failure)>,
) -> Answer {
    let words = |(asked, failure): &(Option<String>, Failure)| match asked {
        // Most say it themselves.
        Some(asked) if !failure.message.contains(asked.as_str()) => {
            format!("{}: {}", text::printable(asked), failure.message)
        }
        _ => failure.message.clone(),
    };
    let count = failures.len();
    if count > 1 {
        answer.warnings.extend(bounded(failures.iter().map(words).collect()));
    }
    let first = failures.into_iter().next().map(|first| {
        let message = match count {
            1 => words(&first),
            _ => format!("{count} of {all} files are not {done}; the first: {}", words(&first)),
        };
        Failure { message, ..first.1 }
    });
    answer.fail_if(first)
}

/// As many lines as somebody would read.
pub fn bounded(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(LISTED);
    lines.truncate(LISTED);
    if more > 0 {
        lines.push(format!("... and {more} more"));
    }
    lines
}

/// Waits for all downloads, or for those that are meant.
///
/// # Errors
/// [`Failure`]; of several the answer has the first.
pub async fn wait(
    agent: &Agent,
    which: Option<(GroupName, Vec<Selector>)>,
    timeout: Option<Duration>,
) -> Result<Answer, Failure> {
    let (rows, failure) = match &which {
        None => (agent.wait(timeout).await?, None),
        Some((group, files)) => {
            let rows = agent.wait_for(group, files, timeout).await?;
            let failure = transfers::first_failure(&rows);
            (rows, failure)
        }
    };
    match failure {
        Some(failure) if rows.len() == 1 => Err(failure),
        failure => {
            let answer = Answer::new(transfers::rows_json(&rows), transfers::finished(&rows));
            Ok(answer.fail_if(failure))
        }
    }
}

fn shared_json(shared: &Shared) -> Value {
    let head = shared.manifest.head();
    json!({
        "group": shared.group, "name": shared.name, "path": text::lossy(&shared.path),
        "size": head.layout().size(), "content_id": shared.manifest.content_id(),
        "sha1": head.sha1(), "info_hash": head.info_hash(), "blake3": head.blake3(),
        "pieces": head.layout().piece_count(),
        "mtorrent": shared.metafile.as_deref().map(text::lossy), "warning": shared.warning,
    })
}

/// The group of a share that names none.
fn default_group(request: &Request) -> Result<GroupName, Failure> {
    match &request.default_group {
        Some(group) => group.parse().map_err(|e| bad_name(group, &e)),
        None => Err(Failure::usage("missing <GROUP>").hint(
            "name a group, or set default-group in config.toml (mtq config path says where)",
        )),
    }
}

fn started_text(started: &Started) -> String {
    let mut text = format!(
        "downloading {} ({}) from {} to {}",
        started.name,
        text::size(started.size),
        started.group,
        text::path(&started.path)
    );
    if started.stored_bytes == started.size && started.size > 0 {
        return format!("{} is already at {}", started.name, text::path(&started.path));
    }
    if started.stored_bytes > 0 {
        text += &format!("; {} are there already", text::size(started.stored_bytes));
    }
    text
}

fn started_json(started: &Started) -> Value {
    json!({
        "download": started.number, "group": started.group, "name": started.name,
        "path": text::lossy(&started.path), "content_id": started.content, "size": started.size,
        "stored_bytes": started.stored_bytes, "warning": started.warning,
    })
}

fn bad_name(text: &str, error: &dyn std::error::Error) -> Failure {
    Failure::usage(format!("{}: {error}", text::printable(text)))
}

/// Reads a small text file named on the command line.
///
/// # Errors
/// [`Failure`].
pub fn read_text(path: &Path, limit: u64) -> Result<String, Failure> {
    use std::io::Read as _;
    let fail = |error| {
        let path: PathBuf = path.to_owned();
        Failure::from(AgentError::File { path, error })
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut content = String::new();
    let len = file.take(limit + 1).read_to_string(&mut content).map_err(fail)?;
    if len as u64 > limit {
        let message = format!("{} is over the limit of {limit} bytes", text::path(path));
        return Err(Failure::new("too-large", message));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_one_name_a_line() {
        let request = Request {
            input: Some("a b.iso\r\n\nann/c\nid:00ff00ff\n".to_owned()),
            ..Request::default()
        };
        let files = listed(&request, STANDARD_INPUT).expect("a list");
        let names: Vec<_> = files.iter().map(ToString::to_string).collect();
        assert_eq!(names[..2], ["a b.iso", "ann/c"]);
        assert!(matches!(files[2], Selector::Id(_)));
        for bad in ["", "\n\n", "a\nid:x\n"] {
            let request = Request { input: Some(bad.to_owned()), ..Request::default() };
            assert_eq!(listed(&request, STANDARD_INPUT).expect_err(bad).code, "usage");
        }
        assert_eq!(listed(&Request::default(), STANDARD_INPUT).expect_err("none").code, "usage");
        assert_eq!(listed(&request, "/nonexistent/list").expect_err("none").code, "not-found");
    }

    #[test]
    fn of_many_failures_all_are_told_and_the_first_is_the_commands() {
        let failure = |name: &str| {
            let message = format!("there is no file {name} in lab");
            (Some(name.to_owned()), Failure::new("no-such-file", message))
        };
        let answer = || Answer::new(json!({}), "");
        assert!(in_part(answer(), "shared", 3, Vec::new()).failure.is_none());
        let one = in_part(answer(), "shared", 3, vec![failure("b")]);
        assert_eq!(one.failure, Some(failure("b").1));
        assert!(one.warnings.is_empty());
        let names: Vec<_> = (0..30).map(|number| format!("f{number}")).collect();
        let many = in_part(answer(), "shared", 40, names.iter().map(|n| failure(n)).collect());
        assert_eq!((many.warnings.len(), many.warnings[20].as_str()), (21, "... and 10 more"));
        let first = many.failure.expect("the first");
        assert_eq!((first.code.as_str(), first.status), ("no-such-file", 4));
        assert!(first.message.contains("30 of 40") && first.message.contains("f0"), "{first:?}");
        let (asked, elsewhere) = failure("x");
        let nameless = Failure { message: "the disk is full".to_owned(), ..elsewhere };
        let told = in_part(answer(), "shared", 1, vec![(asked, nameless)]).failure.expect("it");
        assert_eq!(told.message, "x: the disk is full");
    }
}
