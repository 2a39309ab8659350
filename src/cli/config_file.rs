//! `config.toml` as text: which settings there are, and what a file says of them, with its lines.
//!
//! Every key it does not know and every value of the wrong kind is an error that names the line. What the
//! values mean is not known here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::exit::Failure;
use super::text::printable;
use crate::limits::MAX_TRACKERS;
use crate::tracker_link::{TrackerInfo, TrackerLink};

/// A setting by all its names.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// In the file.
    pub name: &'static str,
    /// On the command line.
    pub flag: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// A value that makes sense, as it stands in the environment.
    pub example: &'static str,
    /// What it is in the file.
    pub kind: Kind,
}

/// What a value is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string, or a number of bytes a second.
    Rate,
    /// A string, or a number of bytes.
    Bytes,
    /// `true` or `false`.
    Switch,
    /// A path, or an array of links.
    Trackers,
}

/// The trackers.
pub const TRACKERS: Key = Key {
    name: "trackers",
    flag: "--trackers",
    variable: "MTQ_TRACKERS",
    example: "tracker_info.txt",
    kind: Kind::Trackers,
};

/// Where identity and login are.
pub const DATA_DIR: Key = Key {
    name: "data-dir",
    flag: "--data-dir",
    variable: "MTQ_DATA_DIR",
    example: "/srv/mtq",
    kind: Kind::Text,
};

/// The UDP address.
pub const LISTEN: Key = Key {
    name: "listen",
    flag: "--listen",
    variable: "MTQ_LISTEN",
    example: "0.0.0.0:4434",
    kind: Kind::Text,
};

/// The log.
pub const LOG_FILE: Key = Key {
    name: "log-file",
    flag: "--log-file",
    variable: "MTQ_LOG_FILE",
    example: "/var/log/mtq.log",
    kind: Kind::Text,
};

/// What is sent a second.
pub const UP: Key =
    Key { name: "up", flag: "--up", variable: "MTQ_UP", example: "2MiB", kind: Kind::Rate };

/// What is received a second.
pub const DOWN: Key =
    Key { name: "down", flag: "--down", variable: "MTQ_DOWN", example: "500KB", kind: Kind::Rate };

/// The largest datagram sent.
pub const MAX_MTU: Key = Key {
    name: "max-mtu",
    flag: "--max-mtu",
    variable: "MTQ_MAX_MTU",
    example: "1452",
    kind: Kind::Bytes,
};

/// The congestion control.
pub const CONGESTION: Key = Key {
    name: "congestion",
    flag: "--congestion",
    variable: "MTQ_CONGESTION",
    example: "bbr",
    kind: Kind::Text,
};

/// The group of a share that names none.
pub const DEFAULT_GROUP: Key = Key {
    name: "default-group",
    flag: "--default-group",
    variable: "MTQ_DEFAULT_GROUP",
    example: "lab",
    kind: Kind::Text,
};

/// Where metafiles go.
pub const MTORRENT_DIR: Key = Key {
    name: "mtorrent-dir",
    flag: "--mtorrent-dir",
    variable: "MTQ_MTORRENT_DIR",
    example: "/srv/metafiles",
    kind: Kind::Text,
};

/// What is run for every event.
pub const ON_EVENT: Key = Key {
    name: "on-event",
    flag: "--on-event",
    variable: "MTQ_ON_EVENT",
    example: "/usr/local/bin/notice",
    kind: Kind::Text,
};

/// Output for scripts.
pub const JSON: Key =
    Key { name: "json", flag: "--json", variable: "MTQ_JSON", example: "true", kind: Kind::Switch };

/// What was typed at the prompt.
pub const HISTORY: Key = Key {
    name: "history",
    flag: "--history",
    variable: "MTQ_HISTORY",
    example: "/home/me/mtq.history",
    kind: Kind::Text,
};

/// All settings, in the order in which they are shown.
pub const KEYS: [&Key; 13] = [
    &TRACKERS,
    &DATA_DIR,
    &LISTEN,
    &LOG_FILE,
    &UP,
    &DOWN,
    &MAX_MTU,
    &CONGESTION,
    &DEFAULT_GROUP,
    &MTORRENT_DIR,
    &ON_EVENT,
    &JSON,
    &HISTORY,
];

/// What a file says of one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where, counted from 1.
    pub line: usize,
    /// What.
    pub value: Value,
}

/// A value of the right kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// As it would stand in the environment.
    Text(String),
    /// Links in an array.
    Links(TrackerInfo),
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
    entries: BTreeMap<&'static str, Entry>,
}

impl ConfigFile {
    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`Failure`] with the code `bad-config`, which names the file and the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
        let wrong = |offset, message: &str| wrong_line(path, line_at(offset), message);
        let table = DeTable::parse(text).map_err(|error| {
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            wrong(error.span().map_or(0, |span| span.start), &message)
        })?;
        let mut entries = BTreeMap::new();
        for (name, value) in table.into_inner() {
            let at = name.span().start;
            let name = name.into_inner();
            let Some(key) = KEYS.into_iter().find(|key| key.name == name) else {
                let failure = wrong(at, &format!("there is no setting {}", cut(&name)));
                return Err(failure.hint(nearest(&name)));
            };
            let line = line_at(at);
            let value = match key.kind.read(&value) {
                Ok(value) => value,
                Err((offset, cause)) => {
                    let failure = wrong(offset, &format!("{} {cause}", key.name));
                    return Err(failure.hint(key.file_example()));
                }
            };
            entries.insert(key.name, Entry { line, value });
        }
        Ok(Self { path: path.to_owned(), entries })
    }

    /// What it says of a setting.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key.name)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Key {
    /// A line of the file that makes sense.
    pub fn file_example(&self) -> String {
        match self.kind {
            Kind::Switch | Kind::Bytes => format!("for example {} = {}", self.name, self.example),
            _ => format!("for example {} = \"{}\"", self.name, self.example),
        }
    }
}

impl Kind {
    /// A value of this kind; otherwise where it is wrong, and how.
    fn read(self, value: &Spanned<DeValue<'_>>) -> Result<Value, (usize, String)> {
        let is_not = |wanted: &str| {
            (value.span().start, format!("is {wanted}, not {}", kind_of(value.get_ref())))
        };
        let text = match (self, value.get_ref()) {
            (Self::Trackers, DeValue::Array(links)) => {
                return links_of(links, value.span().start).map(Value::Links);
            }
            (Self::Text | Self::Rate | Self::Bytes | Self::Trackers, DeValue::String(text)) => {
                text.to_string()
            }
            (Self::Rate | Self::Bytes, DeValue::Integer(number)) => number.to_string(),
            (Self::Switch, DeValue::Boolean(on)) => on.to_string(),
            (Self::Text, _) => return Err(is_not("a string")),
            (Self::Rate, _) => return Err(is_not("a string or a number of bytes a second")),
            (Self::Bytes, _) => return Err(is_not("a string or a number of bytes")),
            (Self::Switch, _) => return Err(is_not("true or false")),
            (Self::Trackers, _) => return Err(is_not("a path or an array of links")),
        };
        if text.is_empty() {
            return Err((value.span().start, "is empty".to_owned()));
        }
        Ok(Value::Text(text))
    }
}

fn links_of(array: &DeArray<'_>, begin: usize) -> Result<TrackerInfo, (usize, String)> {
    if array.len() > MAX_TRACKERS {
        let message =
            format!("has {} links, which is over the limit of {MAX_TRACKERS}", array.len());
        return Err((begin, message));
    }
    let mut links: Vec<TrackerLink> = Vec::new();
    for link in array.iter() {
        let at = link.span().start;
        let DeValue::String(text) = link.get_ref() else {
            return Err((at, format!("has links, not {}", kind_of(link.get_ref()))));
        };
        let link: TrackerLink =
            text.parse().map_err(|error| (at, format!("has {}: {error}", cut(text))))?;
        if links.iter().any(|earlier| earlier.peer_id() == link.peer_id()) {
            return Err((at, "has the same peer id in an earlier link".to_owned()));
        }
        links.push(link);
    }
    TrackerInfo::new(links).map_err(|_| (begin, "has no links".to_owned()))
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A line that makes no sense.
pub fn wrong_line(path: &Path, line: usize, message: &str) -> Failure {
    wrong(path, &format!("line {line}: {}", printable(message)))
}

/// A file that makes no sense.
pub fn wrong(path: &Path, message: &str) -> Failure {
    Failure::new("bad-config", format!("{}: {message}", super::text::path(path)))
}

/// Characters of a wrong value that are repeated to whoever wrote it.
const SHOWN: usize = 60;

/// A value, no longer than a line has room for.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", printable(&text[..at])),
        None => printable(text),
    }
}

/// The key that was probably meant, or all there are.
fn nearest(name: &str) -> String {
    let best = KEYS.into_iter().map(|key| (distance(name, key.name), key)).min_by_key(|(d, _)| *d);
    match best {
        Some((distance, key)) if distance <= key.name.len() / 2 => {
            format!("did you mean {}?", key.name)
        }
        _ => {
            let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
            format!("the settings are {}", names.join(", "))
        }
    }
}

/// Characters to insert, remove or change to make one name the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in other.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_id::PeerId;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<ConfigFile, Failure> {
        ConfigFile::parse(Path::new("/etc/c.toml"), text)
    }

    fn link(id: u8) -> String {
        format!("mtq://example.org:4000#{}", PeerId([id; 32]))
    }

    #[test]
    fn names_of_a_setting_follow_one_rule() {
        for key in KEYS {
            assert_eq!(key.flag, format!("--{}", key.name));
            let variable = key.name.to_uppercase().replace('-', "_");
            assert_eq!(key.variable, format!("MTQ_{variable}"));
        }
    }

    #[test]
    fn entries_and_their_lines() {
        let text = format!(
            "# mine\nup = \"2MiB\"\ndown = 500_000\n\njson = false\n\"data-dir\" = 'a b'\n\
             trackers = [\n  \"{}\",\n  \"{}\",\n]\n",
            link(1),
            link(2)
        );
        let file = parse(&text).expect("valid");
        let entry = |key| file.entry(key).cloned().expect("there");
        let line = |line, text: &str| Entry { line, value: Value::Text(text.to_owned()) };
        assert_eq!(entry(&UP), line(2, "2MiB"));
        assert_eq!(entry(&DOWN), line(3, "500000"));
        assert_eq!(entry(&JSON), line(5, "false"));
        assert_eq!(entry(&DATA_DIR), line(6, "a b"));
        assert_eq!(entry(&TRACKERS).line, 7);
        assert!(matches!(entry(&TRACKERS).value, Value::Links(info) if info.links().len() == 2));
        assert_eq!(file.entry(&LISTEN), None);
        assert_eq!(parse("").expect("valid").entries.len(), 0);
        // A byte order mark, which some editors write.
        assert!(parse("\u{feff}up = \"2MiB\"\n").expect("valid").entry(&UP).is_some());
    }

    #[test]
    fn wrong_files_get_one_line_with_its_number() {
        let twice = format!("trackers = [\"{}\",\n\"{}\"]", link(1), link(1));
        let many: Vec<_> = (0..=MAX_TRACKERS as u8).map(|i| format!("\"{}\"", link(i))).collect();
        let many = format!("trackers = [{}]", many.join(","));
        let (long, key) = ("x".repeat(60_000), "k".repeat(60_000));
        for (text, line, words, hint) in [
            ("\n\nuq = 1", 3, "there is no setting uq", "did you mean up?"),
            ("data_dir = 'x'", 1, "there is no setting data_dir", "did you mean data-dir?"),
            ("default_group = 'x'", 1, "default_group", "did you mean default-group?"),
            (
                "[client]\nup = '1MiB'",
                1,
                "there is no setting client",
                "the settings are trackers, ",
            ),
            ("up = 1\n\"a\\u001bb\" = 2", 2, "no setting a\\u{1b}b", "the settings are"),
            (&format!("{key} = 1"), 1, "kkkk...", "the settings are"),
            (
                "up = true",
                1,
                "up is a string or a number of bytes a second, not true or false",
                "up = \"2MiB\"",
            ),
            (
                "max-mtu = 1452.0",
                1,
                "max-mtu is a string or a number of bytes, not a fraction",
                "max-mtu = 1452",
            ),
            ("json = 'yes'", 1, "json is true or false, not a string", "json = true"),
            ("\nlisten = 4", 2, "listen is a string, not an integer", "0.0.0.0:4434"),
            ("listen = ''", 1, "listen is empty", "for example listen"),
            ("log-file = 1.5", 1, "not a fraction", "for example"),
            ("log-file = 2026-01-01", 1, "not a time", "for example"),
            (
                "trackers = 5",
                1,
                "trackers is a path or an array of links, not an integer",
                "for example",
            ),
            ("trackers = []", 1, "trackers has no links", "for example"),
            ("trackers = [\n3]", 2, "trackers has links, not an integer", "for example"),
            (
                "trackers = [\n\n'mtq://x']",
                3,
                "trackers has mtq://x: a tracker link ends",
                "for example",
            ),
            (&twice, 2, "same peer id", "for example"),
            (&many, 1, "over the limit of 16", "for example"),
            (&format!("trackers = ['{long}']"), 1, "xxx...", "for example"),
        ] {
            let failure = parse(text).expect_err(text);
            let message = &failure.message;
            assert_eq!((failure.code.as_str(), failure.status), ("bad-config", 2), "{message}");
            assert!(message.starts_with(&format!("/etc/c.toml: line {line}: ")), "{message}");
            assert!(message.contains(words), "{message}");
            assert!(message.len() < 250 && !message.contains(char::is_control), "{message}");
            let given = failure.hint.expect("a hint");
            assert!(given.contains(hint), "{message}: {given}");
        }
    }

    #[test]
    fn what_is_no_toml_is_named_by_its_line() {
        for (text, line) in [
            ("up", 1),
            ("\n\nup = ", 3),
            ("up = '1MiB'\nup = '2MiB'", 2),
            ("up = \"1", 1),
            ("\x01", 1),
            ("up = 1 2", 1),
            ("[", 1),
        ] {
            let failure = parse(text).expect_err(text);
            let message = failure.message;
            assert!(message.starts_with(&format!("/etc/c.toml: line {line}: ")), "{message}");
            assert!(message.len() < 250 && !message.contains(char::is_control), "{message}");
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(text in "([a-z-]{0,9} ?[=.\\[]? ?[\"'\\[{]?\\PC{0,9}[\"'\\]}]?\n?){0,6}") {
            if let Err(failure) = parse(&text) {
                prop_assert!(!failure.message.contains(char::is_control));
            }
        }
    }
}
