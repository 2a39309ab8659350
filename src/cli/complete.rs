//! What the word before the cursor may become, as far as the grammar and the words before it say.

use clap::CommandFactory as _;

use super::client_args::Line;

/// What a command takes at one of its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A group of anybody's.
    AnyGroup,
    /// A group one is in.
    MyGroup,
    /// A group one owns.
    OwnGroup,
    /// A member of the group named first.
    Member,
    /// Somebody who asks to join it.
    Asker,
    /// A file on its list.
    Listed,
    /// A file of it that is shared or downloaded here.
    Local,
    /// A path.
    Path,
    /// A metafile.
    Metafile,
    /// What `get` begins with: a group one is in, or a metafile.
    Source,
    /// What stands behind that: a file on its list, or where the metafile's file goes.
    OfSource,
}

use Place::{
    AnyGroup, Asker, Listed, Local, Member, Metafile, MyGroup, OfSource, OwnGroup, Path, Source,
};

/// What commands take, place by place; one that is not here takes nothing that is known.
const PLACES: &[(&str, &[Place])] = &[
    ("join-group", &[AnyGroup]),
    ("leave-group", &[MyGroup]),
    ("list-requests", &[OwnGroup]),
    ("accept-request", &[OwnGroup, Asker]),
    ("reject-request", &[OwnGroup, Asker]),
    ("kick", &[OwnGroup, Member]),
    ("nominate", &[OwnGroup, Member]),
    ("transfer-group", &[OwnGroup, Member]),
    ("set-group", &[OwnGroup]),
    ("unlist", &[OwnGroup, Listed]),
    ("list-members", &[MyGroup]),
    ("share", &[Path, MyGroup]),
    ("list-files", &[MyGroup]),
    ("get", &[Source, OfSource, Path]),
    ("stop-share", &[MyGroup, Local]),
    ("remove", &[Metafile]),
    ("pause", &[MyGroup, Local]),
    ("resume", &[MyGroup, Local]),
    ("cancel", &[MyGroup, Local]),
    ("wait", &[MyGroup, Local]),
    ("limit", &[MyGroup, Local]),
    ("peers", &[MyGroup, Local]),
];

/// Options whose value is a path.
const PATH_OPTIONS: &[&str] = &["mtorrent"];

/// Which groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// All.
    Any,
    /// Those one is in.
    Mine,
    /// Those one owns.
    Own,
}

/// What a word may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing that is known.
    Nothing,
    /// One of these.
    Words(Vec<String>),
    /// A group.
    Group(Groups),
    /// A group one is in, or a metafile.
    GroupOrMetafile,
    /// A member of this group.
    Member(String),
    /// Somebody who asks to join this group.
    Asker(String),
    /// A file on the list of this group.
    Listed(String),
    /// A file of this group that is shared or downloaded here.
    Local(String),
    /// A path.
    Path,
    /// A metafile, or a directory on the way to it.
    Metafile,
}

/// What the word behind `words`, of which `partial` is there, may become.
pub fn wanted(words: &[String], partial: &str) -> Wanted {
    let grammar = Line::command();
    let commands = || {
        let names = grammar.get_subcommands().filter(|command| !command.is_hide_set());
        let names = names.map(|command| command.get_name().to_owned());
        Wanted::Words(names.chain(["help".to_owned()]).collect())
    };
    let (first, rest) = match words {
        [] => return commands(),
        [help] if help == "help" => return commands(),
        [first, rest @ ..] => (first, rest),
    };
    let Some(command) = grammar.find_subcommand(first) else { return Wanted::Nothing };
    let option = |word: &str| {
        let name = word.strip_prefix("--")?;
        command.get_arguments().find(|arg| arg.get_long() == Some(name))
    };
    let mut given = Vec::new();
    let mut words = rest.iter();
    let mut options_end = false;
    while let Some(word) = words.next() {
        if options_end || !word.starts_with("--") {
            given.push(word.as_str());
        } else if word == "--" {
            options_end = true;
        } else if let Some(option) = option(word).filter(|arg| arg.get_action().takes_values())
            && words.next().is_none()
        {
            // The word is its value.
            let is_path = option.get_long().is_some_and(|name| PATH_OPTIONS.contains(&name));
            return if is_path { Wanted::Path } else { Wanted::Nothing };
        }
    }
    if partial.starts_with('-') && !options_end {
        let options = command.get_arguments().filter_map(clap::Arg::get_long);
        return Wanted::Words(options.map(|name| format!("--{name}")).collect());
    }
    let places = PLACES.iter().find(|(name, _)| *name == command.get_name());
    let Some(place) = places.and_then(|(_, places)| places.get(given.len())) else {
        return Wanted::Nothing;
    };
    let group = given.first().map(|group| (*group).to_owned()).unwrap_or_default();
    match place {
        AnyGroup => Wanted::Group(Groups::Any),
        MyGroup => Wanted::Group(Groups::Mine),
        OwnGroup => Wanted::Group(Groups::Own),
        Member => Wanted::Member(group),
        Asker => Wanted::Asker(group),
        Listed => Wanted::Listed(group),
        Local => Wanted::Local(group),
        Path if is_metafile(&group) && command.get_name() == "get" => Wanted::Nothing,
        Path => Wanted::Path,
        Metafile => Wanted::Metafile,
        Source => Wanted::GroupOrMetafile,
        OfSource if is_metafile(&group) => Wanted::Path,
        OfSource => Wanted::Listed(group),
    }
}

/// Whether a word is the path of a metafile and not a group.
fn is_metafile(word: &str) -> bool {
    word.ends_with(".mtorrent") || word.contains('/')
}

/// A line up to the cursor, as a shell reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// The words before the one at the cursor.
    pub words: Vec<String>,
    /// As much of that one as is there, without its quotes.
    pub partial: String,
    /// Where it begins in the line, in bytes, with its quotes.
    pub start: usize,
}

impl Typed {
    /// Reads a line; a quote need not be closed.
    pub fn read(line: &str) -> Self {
        let mut typed = Self::default();
        let (mut quote, mut in_word) = (None, false);
        let mut chars = line.char_indices();
        while let Some((at, c)) = chars.next() {
            if quote.is_none() && matches!(c, ' ' | '\t' | '\n') {
                if std::mem::take(&mut in_word) {
                    typed.words.push(std::mem::take(&mut typed.partial));
                }
                continue;
            }
            if !std::mem::replace(&mut in_word, true) {
                typed.start = at;
            }
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, '\\') => typed.partial.extend(chars.next().map(|(_, c)| c)),
                (Some('"'), '\\') => match chars.next() {
                    Some((_, c @ ('"' | '\\' | '$' | '`'))) => typed.partial.push(c),
                    Some((_, c)) => typed.partial.extend(['\\', c]),
                    None => {}
                },
                (_, c) => typed.partial.push(c),
            }
        }
        if !in_word {
            typed.start = line.len();
        }
        typed
    }
}

/// A word as it stands in a line: in quotes where it needs them, and not closed where it goes on.
pub fn written(word: &str, goes_on: bool) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:,+@%=~".contains(c);
    let is_plain = !word.is_empty() && word.chars().all(is_plain);
    match (is_plain, goes_on) {
        (true, true) => word.to_owned(),
        (true, false) => format!("{word} "),
        (false, true) => format!("'{}", word.replace('\'', r"'\''")),
        (false, false) => format!("'{}' ", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: &str) -> Wanted {
        let typed = Typed::read(line);
        wanted(&typed.words, &typed.partial)
    }

    fn words(line: &str) -> Vec<String> {
        match at(line) {
            Wanted::Words(words) => words,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_place_knows_what_it_takes() {
        let lab = || "lab".to_owned();
        for (line, expected) in [
            ("join-group l", Wanted::Group(Groups::Any)),
            ("kick ", Wanted::Group(Groups::Own)),
            ("kick lab b", Wanted::Member(lab())),
            ("accept_request lab ", Wanted::Asker(lab())),
            ("share ", Wanted::Path),
            ("share a.iso ", Wanted::Group(Groups::Mine)),
            ("share --mtorrent ", Wanted::Path),
            ("share --name x ", Wanted::Path),
            ("share --name ", Wanted::Nothing),
            ("share a.iso lab ", Wanted::Nothing),
            ("get ", Wanted::GroupOrMetafile),
            ("get lab 'a b", Wanted::Listed(lab())),
            ("get --wait lab a ", Wanted::Path),
            ("get lab -- -", Wanted::Listed(lab())),
            ("get x.mtorrent ", Wanted::Path),
            ("get x.mtorrent . ", Wanted::Nothing),
            ("stop-share lab ", Wanted::Local(lab())),
            ("remove ./", Wanted::Metafile),
            ("login ", Wanted::Nothing),
            ("nonsense ", Wanted::Nothing),
        ] {
            assert_eq!(at(line), expected, "{line}");
        }
        assert!(words("").contains(&"list-files".to_owned()));
        assert!(words("help l").contains(&"login".to_owned()));
        assert_eq!(words("search --"), ["--prefix", "--regex", "--glob"]);
    }

    #[test]
    fn the_table_names_what_exists() {
        let grammar = Line::command();
        let known = PLACES.iter().filter(|(name, _)| grammar.find_subcommand(name).is_some());
        assert!(known.count() >= 19);
        for (name, places) in PLACES {
            let Some(command) = grammar.find_subcommand(name) else { continue };
            assert_eq!(command.get_name(), *name, "not an alias");
            let takes_many = |arg: &clap::Arg| matches!(arg.get_action(), clap::ArgAction::Append);
            let many = command.get_positionals().any(takes_many);
            assert!(many || command.get_positionals().count() >= places.len(), "{name}");
        }
    }

    #[test]
    fn lines_are_read_as_a_shell_reads_them() {
        let read = |line: &str| {
            let typed = Typed::read(line);
            (typed.words.join("|"), typed.partial, typed.start)
        };
        let is = |words: &str, partial: &str, start| (words.to_owned(), partial.to_owned(), start);
        assert_eq!(read("get lab 'a b"), is("get|lab", "a b", 8));
        assert_eq!(read(r#"get "l b" a\ b"#), is("get|l b", "a b", 10));
        assert_eq!(read("get lab "), is("get|lab", "", 8));
        assert_eq!(read("  ge"), is("", "ge", 2));
        assert_eq!(read(r#"x "a\"b\c"#), is("x", r#"a"b\c"#, 2));
        assert_eq!(read(r"x 'it'\''s"), is("x", "it's", 2));
        assert_eq!(read("é '' "), is("é|", "", 6));
    }

    #[test]
    fn words_are_read_back_as_they_were() {
        for word in ["a.iso", "a b.iso", "it's", "日本.iso", "$HOME", "a\"b", "\\", "#x", "*", ""]
        {
            let line = format!("get {}", written(word, false));
            assert_eq!(
                shlex::split(&line),
                Some(vec!["get".to_owned(), word.to_owned()]),
                "{line}"
            );
            assert_eq!(Typed::read(&format!("get {}", written(word, true))).partial, word);
        }
        assert_eq!(written("dir/", true), "dir/");
    }
}
