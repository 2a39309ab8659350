//! The settings of a client: a flag, otherwise a variable, otherwise the file, otherwise a default.
//!
//! Each value says where it came from. A wrong one is one line that names the place, even when a stronger
//! value is right only for another setting; a wrong one that a stronger value hides is not looked at.
//! Nothing is read here: the environment and the text of the file are arguments.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::client_args::ClientOptions;
use super::config_file::{self, ConfigFile, Key, Value, cut};
use super::exit::Failure;
use super::rate::Rate;
use super::text;
use crate::name::GroupName;
use crate::tracker_link::TrackerInfo;

/// The flag and the variable that name another file.
const CONFIG: (&str, &str) = ("--config", "MTQ_CONFIG");

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    Flag(&'static str),
    /// This variable.
    Variable(&'static str),
    /// This file, on this line.
    File(PathBuf, usize),
    /// This file in the data directory, from when it was last given.
    Kept(PathBuf),
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}: line {line}", text::path(path)),
            Self::Kept(path) => write!(f, "kept in {}", text::path(path)),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// What holds.
    pub value: T,
    /// Why.
    pub origin: Origin,
}

impl<T> Setting<T> {
    fn default(value: T) -> Self {
        Self { value, origin: Origin::Default }
    }
}

/// What names trackers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trackers {
    /// A `tracker_info.txt`, not read yet.
    File(PathBuf),
    /// Links.
    Links(TrackerInfo),
}

/// Where things of this user belong; nothing where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The home directory.
    pub home: Option<PathBuf>,
    /// Settings, of all programs.
    pub config: Option<PathBuf>,
    /// Data, of all programs.
    pub data: Option<PathBuf>,
    /// What need not be kept safe, of all programs.
    pub state: Option<PathBuf>,
}

/// What a program finds when it starts.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The variables of the environment, by their names.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Where things belong.
    pub places: &'a Places,
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where `config.toml` is looked for; nothing where that is not known.
    pub config: Option<Setting<PathBuf>>,
    /// Whether it is there.
    pub config_exists: bool,
    /// The trackers; nothing when none were given.
    pub trackers: Setting<Option<Trackers>>,
    /// Where identity, login and library are.
    pub data_dir: Setting<PathBuf>,
    /// The UDP address; all addresses and a free port when not given.
    pub listen: Setting<Option<SocketAddr>>,
    /// The log; standard error when not given.
    pub log_file: Setting<Option<PathBuf>>,
    /// What is sent a second.
    pub up: Setting<Rate>,
    /// What is received a second.
    pub down: Setting<Rate>,
    /// The group of a share that names none.
    pub default_group: Setting<Option<GroupName>>,
    /// Where metafiles go; beside the file shared when not given.
    pub mtorrent_dir: Setting<Option<PathBuf>>,
    /// What is run for every event.
    pub on_event: Setting<Option<String>>,
    /// Whether output is for scripts.
    pub json: Setting<bool>,
    /// Where what is typed at the prompt is kept.
    pub history: Setting<PathBuf>,
}

/// Where `config.toml` is looked for; nothing where that is not known.
///
/// # Errors
/// [`Failure`] when it is named by what cannot be a path.
pub fn config_path(
    flag: Option<&Path>,
    around: Surroundings<'_>,
) -> Result<Option<Setting<PathBuf>>, Failure> {
    let variable = || (around.variable)(CONFIG.1).filter(|value| !value.is_empty());
    let (path, origin) = match (flag, variable()) {
        (Some(path), _) => (path.to_owned(), Origin::Flag(CONFIG.0)),
        (None, Some(path)) => (path.into(), Origin::Variable(CONFIG.1)),
        (None, None) => {
            let path = around.places.config.as_ref().map(|dir| dir.join("mtq/config.toml"));
            return Ok(path.map(Setting::default));
        }
    };
    let value =
        around.expanded(path).map_err(|cause| Failure::usage(format!("{origin}: {cause}")))?;
    Ok(Some(Setting { value, origin }))
}

impl Settings {
    /// What holds, given flags, environment, and the text of the file at [`config_path`]; none when
    /// there is no such file.
    ///
    /// # Errors
    /// [`Failure`] with the code `usage`, or `bad-config` for what stands in the file.
    pub fn resolve(
        options: &ClientOptions,
        around: Surroundings<'_>,
        file: Option<&str>,
    ) -> Result<Self, Failure> {
        let config = config_path(options.config.as_deref(), around)?;
        let file = match (&config, file) {
            (Some(config), Some(text)) => Some(ConfigFile::parse(&config.value, text)?),
            _ => None,
        };
        let sources = Sources { around, file };
        let path = |key, flag: &Option<PathBuf>| sources.path(key, flag.as_deref());
        let data_dir = match path(&config_file::DATA_DIR, &options.data_dir)? {
            Some(given) => given,
            None => Setting::default(around.default_data_dir()?),
        };
        let history = match path(&config_file::HISTORY, &options.history)? {
            Some(given) => given,
            None => Setting::default(around.default_history(&data_dir.value)),
        };
        let rate = |key, flag| {
            let rate = sources.value(key, flag, |text| text.parse::<Rate>())?;
            Ok::<_, Failure>(rate.unwrap_or(Setting::default(Rate(None))))
        };
        let listen = |text: &str| text.parse().map_err(|_| "an address is IP:PORT".to_owned());
        let group =
            |text: &str| text.parse().map_err(|error: crate::name::NameError| error.to_string());
        let json = options.json.then_some(true);
        Ok(Self {
            config_exists: sources.file.is_some(),
            config,
            trackers: or_none(sources.trackers(options.trackers.as_deref())?),
            listen: or_none(sources.value(&config_file::LISTEN, options.listen, listen)?),
            log_file: or_none(path(&config_file::LOG_FILE, &options.log_file)?),
            up: rate(&config_file::UP, options.up)?,
            down: rate(&config_file::DOWN, options.down)?,
            default_group: or_none(sources.value(
                &config_file::DEFAULT_GROUP,
                options.default_group.clone(),
                group,
            )?),
            mtorrent_dir: or_none(path(&config_file::MTORRENT_DIR, &options.mtorrent_dir)?),
            on_event: or_none(sources.value(
                &config_file::ON_EVENT,
                options.on_event.clone(),
                |text| Ok(text.to_owned()),
            )?),
            json: sources
                .value(&config_file::JSON, json, switch)?
                .unwrap_or(Setting::default(false)),
            data_dir,
            history,
        })
    }

    /// The group of a share: the one it names, otherwise the default one.
    ///
    /// # Errors
    /// [`Failure`] when there is neither.
    pub fn group_or_default(&self, named: Option<GroupName>) -> Result<GroupName, Failure> {
        named.or_else(|| self.default_group.value.clone()).ok_or_else(|| {
            Failure::usage("missing <GROUP>")
                .hint("name a group, or set default-group once, as mtq config show explains")
        })
    }
}

fn or_none<T>(given: Option<Setting<T>>) -> Setting<Option<T>> {
    match given {
        Some(Setting { value, origin }) => Setting { value: Some(value), origin },
        None => Setting::default(None),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("it is true or false".to_owned()),
    }
}

impl Surroundings<'_> {
    fn default_data_dir(&self) -> Result<PathBuf, Failure> {
        self.places.data.as_ref().map(|dir| dir.join("mtq")).ok_or_else(|| {
            Failure::usage("there is no home directory to keep data in")
                .hint("set HOME, or name a directory: --data-dir DIR")
        })
    }

    /// Beside the data unless that is where it belongs by default.
    fn default_history(&self, data_dir: &Path) -> PathBuf {
        let is_default = self.places.data.as_ref().is_some_and(|dir| dir.join("mtq") == data_dir);
        match &self.places.state {
            Some(state) if is_default => state.join("mtq/history"),
            _ => data_dir.join("history"),
        }
    }

    /// A path with `~` as the home directory, as a shell has it.
    fn expanded(&self, path: PathBuf) -> Result<PathBuf, String> {
        let Ok(rest) = path.strip_prefix("~") else { return Ok(path) };
        match &self.places.home {
            Some(home) => Ok(home.join(rest)),
            None => Err(format!("{} is in no known home directory", text::path(&path))),
        }
    }
}

/// Where a setting may stand besides the command line.
struct Sources<'a> {
    around: Surroundings<'a>,
    file: Option<ConfigFile>,
}

/// A value as it was given, and where.
type Given = (OsString, Origin);

impl Sources<'_> {
    /// The variable, otherwise the file, unless that has links. An empty variable is none.
    fn given(&self, key: &Key) -> Option<Given> {
        if let Some(value) = (self.around.variable)(key.variable).filter(|value| !value.is_empty())
        {
            return Some((value, Origin::Variable(key.variable)));
        }
        let file = self.file.as_ref()?;
        let entry = file.entry(key)?;
        match &entry.value {
            Value::Text(text) => {
                Some((text.into(), Origin::File(file.path().to_owned(), entry.line)))
            }
            Value::Links(_) => None,
        }
    }

    fn value<T>(
        &self,
        key: &Key,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Setting<T>>, Failure> {
        if let Some(value) = flag {
            return Ok(Some(Setting { value, origin: Origin::Flag(key.flag) }));
        }
        let Some((value, origin)) = self.given(key) else { return Ok(None) };
        let parsed = match value.to_str() {
            Some(text) => parse(text),
            None => Err("it is not valid UTF-8".to_owned()),
        };
        match parsed {
            Ok(value) => Ok(Some(Setting { value, origin })),
            Err(cause) => Err(wrong(key, &value, &origin, &cause)),
        }
    }

    fn path(&self, key: &Key, flag: Option<&Path>) -> Result<Option<Setting<PathBuf>>, Failure> {
        let given = match flag {
            Some(path) => Some((path.as_os_str().to_owned(), Origin::Flag(key.flag))),
            None => self.given(key),
        };
        let Some((value, origin)) = given else { return Ok(None) };
        let path = match self.around.expanded(PathBuf::from(&value)) {
            Ok(path) => path,
            Err(cause) => return Err(wrong(key, &value, &origin, &cause)),
        };
        // A file means the same wherever a program that reads it was started.
        let value = match &origin {
            Origin::File(file, _) => file.parent().unwrap_or(Path::new("")).join(path),
            _ => path,
        };
        Ok(Some(Setting { value, origin }))
    }

    fn trackers(&self, flag: Option<&Path>) -> Result<Option<Setting<Trackers>>, Failure> {
        let key = &config_file::TRACKERS;
        let given = match flag {
            Some(path) => Some((path.as_os_str().to_owned(), Origin::Flag(key.flag))),
            None => self.given(key),
        };
        if let Some((value, origin)) = &given
            && let Some(link) = value.to_str().filter(|text| text.starts_with("mtq://"))
        {
            let info = match link.parse() {
                Ok(link) => TrackerInfo::new(vec![link]).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let info = info.map_err(|cause| wrong(key, value, origin, &cause))?;
            return Ok(Some(Setting { value: Trackers::Links(info), origin: origin.clone() }));
        }
        let links = |file: &ConfigFile| match file.entry(key) {
            Some(entry) => match &entry.value {
                Value::Links(info) => Some(Setting {
                    value: Trackers::Links(info.clone()),
                    origin: Origin::File(file.path().to_owned(), entry.line),
                }),
                Value::Text(_) => None,
            },
            None => None,
        };
        match given {
            Some(_) => {
                let path = self.path(key, flag)?;
                Ok(path.map(|Setting { value, origin }| Setting {
                    value: Trackers::File(value),
                    origin,
                }))
            }
            None => Ok(self.file.as_ref().and_then(links)),
        }
    }
}

/// A value that makes no sense, by where it stands.
fn wrong(key: &Key, value: &OsStr, origin: &Origin, cause: &str) -> Failure {
    let shown = cut(&value.to_string_lossy());
    match origin {
        Origin::File(path, line) => {
            config_file::wrong_line(path, *line, &format!("{} = {shown}: {cause}", key.name))
                .hint(key.file_example())
        }
        Origin::Variable(name) => Failure::usage(format!("{name}={shown}: {cause}"))
            .hint(format!("for example {name}={}", key.example)),
        _ => Failure::usage(format!("{} {shown}: {cause}", key.flag))
            .hint(format!("for example {} {}", key.flag, key.example)),
    }
}
