//! The settings of a client: a flag, otherwise a variable, otherwise the file, otherwise a default.
//!
//! Each value says where it came from. A wrong one is an error of one line that names the place; one that a
//! stronger source hides is not looked at. Nothing is read here: the environment and the text of the file
//! are arguments.

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
use crate::transport::tuning::{Congestion, Mtu};

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
    /// The largest datagram sent.
    pub max_mtu: Setting<Mtu>,
    /// The congestion control.
    pub congestion: Setting<Congestion>,
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
            max_mtu: sources
                .value(&config_file::MAX_MTU, options.max_mtu, str::parse)?
                .unwrap_or(Setting::default(Mtu::default())),
            congestion: sources
                .value(&config_file::CONGESTION, options.congestion, str::parse)?
                .unwrap_or(Setting::default(Congestion::default())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser};
    use std::collections::HashMap;
    use std::os::unix::ffi::OsStringExt as _;

    use crate::cli::args::Cli;
    use crate::cli::config_file::KEYS;
    use crate::peer_id::PeerId;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        options: ClientOptions,
    }

    /// A user whose home is /home/me.
    fn at_home() -> Places {
        Places {
            home: Some("/home/me".into()),
            config: Some("/home/me/.config".into()),
            data: Some("/home/me/.local/share".into()),
            state: Some("/home/me/.local/state".into()),
        }
    }

    fn resolve_at(
        places: &Places,
        flags: &[&str],
        variables: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Settings, Failure> {
        let options = Words::try_parse_from([&["mtq"], flags].concat()).expect("flags").options;
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let variable = |name: &str| variables.get(name).map(OsString::from);
        Settings::resolve(&options, Surroundings { variable: &variable, places }, file)
    }

    fn resolve(
        flags: &[&str],
        variables: &[(&str, &str)],
        file: Option<&str>,
    ) -> Result<Settings, Failure> {
        resolve_at(&at_home(), flags, variables, file)
    }

    /// A setting as text, and where it came from.
    fn shown(settings: &Settings, key: &Key) -> (String, Origin) {
        fn told<T: fmt::Debug>(setting: &Setting<T>) -> (String, Origin) {
            (format!("{:?}", setting.value), setting.origin.clone())
        }
        match key.name {
            "trackers" => told(&settings.trackers),
            "data-dir" => told(&settings.data_dir),
            "listen" => told(&settings.listen),
            "log-file" => told(&settings.log_file),
            "up" => told(&settings.up),
            "down" => told(&settings.down),
            "max-mtu" => told(&settings.max_mtu),
            "congestion" => told(&settings.congestion),
            "default-group" => told(&settings.default_group),
            "mtorrent-dir" => told(&settings.mtorrent_dir),
            "on-event" => told(&settings.on_event),
            "json" => told(&settings.json),
            "history" => told(&settings.history),
            other => panic!("{other} is in no table"),
        }
    }

    fn link(id: u8) -> String {
        format!("mtq://example.org:4000#{}", PeerId([id; 32]))
    }

    /// Where the file is, for someone at home.
    fn config_toml() -> PathBuf {
        "/home/me/.config/mtq/config.toml".into()
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        // For each setting: three values, and how each reads; then the default.
        let path = |text: &str| format!("Some({text:?})");
        let table = [
            (
                "trackers",
                ["f", "v", "/c"],
                ["Some(File(\"f\"))", "Some(File(\"v\"))", "Some(File(\"/c\"))"].map(str::to_owned),
                "None",
            ),
            (
                "data-dir",
                ["f", "/v", "/c"],
                ["\"f\"", "\"/v\"", "\"/c\""].map(str::to_owned),
                "\"/home/me/.local/share/mtq\"",
            ),
            (
                "listen",
                ["127.0.0.1:1", "[::1]:2", "0.0.0.0:0"],
                ["Some(127.0.0.1:1)", "Some([::1]:2)", "Some(0.0.0.0:0)"].map(str::to_owned),
                "None",
            ),
            ("log-file", ["f", "v", "/c"], ["f", "v", "/c"].map(path), "None"),
            (
                "up",
                ["1MB", "none", "3000000"],
                ["Rate(Some(1000000))", "Rate(None)", "Rate(Some(3000000))"].map(str::to_owned),
                "Rate(None)",
            ),
            (
                "down",
                ["1MB", "2MB", "0"],
                ["Rate(Some(1000000))", "Rate(Some(2000000))", "Rate(None)"].map(str::to_owned),
                "Rate(None)",
            ),
            (
                "max-mtu",
                ["1200", "1452", "8000"],
                ["Mtu(1200)", "Mtu(1452)", "Mtu(8000)"].map(str::to_owned),
                "Mtu(16250)",
            ),
            (
                "congestion",
                ["bbr", "cubic", "bbr"],
                ["Bbr", "Cubic", "Bbr"].map(str::to_owned),
                "Cubic",
            ),
            (
                "default-group",
                ["F", "v", "c"],
                ["f", "v", "c"]
                    .map(|name| format!("{:?}", Some(name.parse::<GroupName>().expect("a name")))),
                "None",
            ),
            ("mtorrent-dir", ["f", "v", "/c"], ["f", "v", "/c"].map(path), "None"),
            ("on-event", ["f x", "v", "~/c"], ["f x", "v", "~/c"].map(path), "None"),
            (
                "history",
                ["f", "v", "/c"],
                ["\"f\"", "\"v\"", "\"/c\""].map(str::to_owned),
                "\"/home/me/.local/state/mtq/history\"",
            ),
        ];
        for (name, given, read, default) in table {
            let key = KEYS.into_iter().find(|key| key.name == name).expect("a setting");
            let [flag, variable, file] = given;
            let (flags, variables) = ([key.flag, flag], [(key.variable, variable)]);
            let file = format!("\n{name} = '{file}'\n");
            let origins = [
                Origin::Flag(key.flag),
                Origin::Variable(key.variable),
                Origin::File(config_toml(), 2),
            ];
            for bits in 0..8 {
                let flags = if bits & 1 > 0 { &flags[..] } else { &[] };
                let variables = if bits & 2 > 0 { &variables[..] } else { &[] };
                let file = (bits & 4 > 0).then_some(file.as_str());
                let settings = resolve(flags, variables, file).expect(name);
                let best = (0..3).find(|i| bits & (1 << i) > 0);
                let expected = match best {
                    Some(i) => (read[i].clone(), origins[i].clone()),
                    None => (default.to_owned(), Origin::Default),
                };
                assert_eq!(shown(&settings, key), expected, "{name} of {bits:03b}");
                for other in KEYS.into_iter().filter(|other| other.name != name) {
                    let (_, origin) = shown(&settings, other);
                    assert_eq!(origin, Origin::Default, "{} is let alone", other.name);
                }
            }
        }
        // The one flag that has no value.
        let file = Some("json = true");
        for (flags, variable, file, value, origin) in [
            (&["--json"][..], Some("false"), None, true, Origin::Flag("--json")),
            (&[], Some("0"), file, false, Origin::Variable("MTQ_JSON")),
            (&[], Some("1"), None, true, Origin::Variable("MTQ_JSON")),
            (&[], None, file, true, Origin::File(config_toml(), 1)),
            (&[], None, None, false, Origin::Default),
        ] {
            let variables: Vec<_> = variable.map(|value| ("MTQ_JSON", value)).into_iter().collect();
            let settings = resolve(flags, &variables, file).expect("valid");
            assert_eq!(settings.json, Setting { value, origin });
        }
    }

    #[test]
    fn every_setting_is_a_flag_and_help_names_its_variable() {
        let mut cli = Cli::command();
        cli.build();
        let client = cli.find_subcommand("client").expect("a verb");
        for key in KEYS {
            let flag = client.get_arguments().find(|arg| arg.get_long() == Some(&key.flag[2..]));
            let help = flag.expect(key.flag).get_help().expect(key.flag).to_string();
            assert!(help.contains(&format!("[env: {}", key.variable)), "{help}");
        }
        let global: Vec<_> = client
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .filter_map(|arg| arg.get_long())
            .collect();
        assert_eq!(global, ["trackers", "data-dir", "config", "log-file", "json"]);
    }

    #[test]
    fn an_empty_variable_is_none() {
        let settings = resolve(&[], &[("MTQ_UP", ""), ("MTQ_CONFIG", "")], Some("up = 50000"));
        let settings = settings.expect("valid");
        assert_eq!(settings.up.origin, Origin::File(config_toml(), 1));
    }

    #[test]
    fn paths_in_the_file_stand_beside_it_and_a_tilde_is_home() {
        let file = "trackers = 'net/t.txt'\nlog-file = '~/mtq.log'\nmtorrent-dir = '/srv'\n";
        let settings = resolve(&["--config", "conf/c.toml"], &[], Some(file)).expect("valid");
        assert_eq!(settings.trackers.value, Some(Trackers::File("conf/net/t.txt".into())));
        assert_eq!(settings.log_file.value, Some("/home/me/mtq.log".into()));
        assert_eq!(settings.mtorrent_dir.value, Some("/srv".into()));
        let config = settings.config.expect("named");
        assert_eq!((config.value, config.origin), ("conf/c.toml".into(), Origin::Flag("--config")));

        let settings =
            resolve(&["--data-dir", "~/d"], &[("MTQ_CONFIG", "c.toml")], Some("trackers='t'"))
                .expect("valid");
        assert_eq!(settings.data_dir.value, Path::new("/home/me/d"));
        assert_eq!(settings.trackers.value, Some(Trackers::File("t".into())), "beside c.toml");
        assert_eq!(settings.history.value, Path::new("/home/me/d/history"));
        // Its default by another way is still the default.
        let settings = resolve(&[], &[("MTQ_DATA_DIR", "~/.local/share/mtq")], None);
        let history = settings.expect("valid").history;
        assert_eq!(history, Setting::default("/home/me/.local/state/mtq/history".into()));
        let odd = resolve(&["--data-dir", "~bob/d"], &[], None).expect("valid");
        assert_eq!(
            odd.data_dir.value,
            Path::new("~bob/d"),
            "somebody else's is a name like another"
        );
    }

    #[test]
    fn trackers_are_a_path_a_link_or_links() {
        let one: TrackerInfo = link(1).parse().expect("a link");
        for settings in [
            resolve(&["--trackers", &link(1)], &[], None),
            resolve(&[], &[("MTQ_TRACKERS", &link(1))], None),
            resolve(&[], &[], Some(&format!("trackers = '{}'", link(1)))),
            resolve(&[], &[], Some(&format!("trackers = ['{}']", link(1)))),
        ] {
            let trackers = settings.expect("valid").trackers.value;
            assert_eq!(trackers, Some(Trackers::Links(one.clone())));
        }
        let file = format!("trackers = ['{}']", link(2));
        let settings = resolve(&[], &[("MTQ_TRACKERS", "t")], Some(&file)).expect("valid");
        assert_eq!(settings.trackers.value, Some(Trackers::File("t".into())));
        let settings = resolve(&["--trackers", "f"], &[], Some(&file)).expect("valid");
        assert_eq!(settings.trackers.value, Some(Trackers::File("f".into())));
    }

    #[test]
    fn wrong_values_get_one_line_that_says_where_they_stand() {
        let file = "/home/me/.config/mtq/config.toml: line 1: ";
        for (flags, variables, text, message, hint) in [
            (
                &[][..],
                &[("MTQ_UP", "100")][..],
                "",
                "MTQ_UP=100: a rate is at least 16.0 KiB",
                "MTQ_UP=2MiB",
            ),
            (
                &[],
                &[],
                "up = 100",
                &format!("{file}up = 100: a rate is at least 16.0 KiB"),
                "up = \"2MiB\"",
            ),
            (
                &[],
                &[("MTQ_DOWN", "fast")],
                "",
                "MTQ_DOWN=fast: a rate is bytes a second",
                "MTQ_DOWN=500KB",
            ),
            (
                &[],
                &[("MTQ_LISTEN", "4433")],
                "",
                "MTQ_LISTEN=4433: an address is IP:PORT",
                "0.0.0.0:4434",
            ),
            (
                &[],
                &[],
                "listen = 'a b'",
                &format!("{file}listen = a b: an address"),
                "for example listen",
            ),
            (
                &[],
                &[("MTQ_MAX_MTU", "17000")],
                "",
                "MTQ_MAX_MTU=17000: an MTU is 1200 to 16250 bytes",
                "MTQ_MAX_MTU=1452",
            ),
            (
                &[],
                &[],
                "max-mtu = 576",
                &format!("{file}max-mtu = 576: an MTU is 1200 to 16250 bytes"),
                "max-mtu = 1452",
            ),
            (
                &[],
                &[],
                "congestion = 'reno'",
                &format!("{file}congestion = reno: congestion control is cubic or bbr"),
                "congestion = \"bbr\"",
            ),
            (&[], &[("MTQ_JSON", "yes")], "", "MTQ_JSON=yes: it is true or false", "MTQ_JSON=true"),
            (
                &[],
                &[("MTQ_DEFAULT_GROUP", "a b")],
                "",
                "MTQ_DEFAULT_GROUP=a b: a name is 1 to 32",
                "=lab",
            ),
            (
                &[],
                &[("MTQ_TRACKERS", "mtq://x")],
                "",
                "MTQ_TRACKERS=mtq://x: a tracker link ends",
                "tracker_info",
            ),
            (
                &["--trackers", "mtq://x"],
                &[],
                "",
                "--trackers mtq://x: a tracker link ends",
                "tracker_info",
            ),
            (
                &[],
                &[],
                "trackers = 'mtq://x'",
                &format!("{file}trackers = mtq://x: a tracker"),
                "tracker_info",
            ),
            (&[], &[("MTQ_UP", "a\x1b[2J\nb")], "", "MTQ_UP=a\\u{1b}[2J\\nb: a rate is", "MTQ_UP"),
        ] {
            let failure = resolve(flags, variables, Some(text)).expect_err(message);
            assert_eq!(failure.status, 2, "{failure:?}");
            assert!(failure.message.starts_with(message), "{failure:?}");
            assert!(!failure.message.contains(char::is_control), "{failure:?}");
            assert!(failure.hint.as_ref().is_some_and(|given| given.contains(hint)), "{failure:?}");
        }
        // What a stronger value hides does not matter.
        assert!(resolve(&["--up", "1MB"], &[("MTQ_UP", "fast")], Some("up = 'x'")).is_ok());
        let bytes = OsString::from_vec(vec![b'a', 0xff]);
        let variable = |name: &str| (name == "MTQ_ON_EVENT").then(|| bytes.clone());
        let around = Surroundings { variable: &variable, places: &at_home() };
        let failure = Settings::resolve(&ClientOptions::default(), around, None);
        let failure = failure.expect_err("not text");
        assert!(failure.message.ends_with("it is not valid UTF-8"), "{failure:?}");
        // A path may be any bytes.
        let variable = |name: &str| (name == "MTQ_DATA_DIR").then(|| bytes.clone());
        let around = Surroundings { variable: &variable, places: &at_home() };
        let settings = Settings::resolve(&ClientOptions::default(), around, None);
        assert_eq!(settings.expect("valid").data_dir.value, PathBuf::from(bytes.clone()));
    }

    #[test]
    fn without_a_home_only_what_needs_one_fails() {
        let nowhere = Places::default();
        let failure = resolve_at(&nowhere, &[], &[], None).expect_err("no data directory");
        assert_eq!(failure.status, 2);
        assert!(failure.hint.is_some_and(|hint| hint.contains("--data-dir")));
        let settings = resolve_at(&nowhere, &["--data-dir", "d"], &[], None).expect("enough");
        assert_eq!(settings.config, None);
        assert_eq!(settings.history, Setting::default("d/history".into()));
        let failure = resolve_at(&nowhere, &["--data-dir", "~/d"], &[], None).expect_err("no home");
        assert!(failure.message.starts_with("--data-dir ~/d: "), "{failure:?}");
        let failure = resolve_at(&nowhere, &["--config", "~/c"], &[], None).expect_err("no home");
        assert!(failure.message.starts_with("--config: ~/c "), "{failure:?}");
        // XDG_DATA_HOME alone is enough.
        let data = Places { data: Some("/data".into()), ..Places::default() };
        let settings = resolve_at(&data, &[], &[], None).expect("enough");
        assert_eq!(settings.data_dir.value, Path::new("/data/mtq"));
        assert_eq!(settings.history.value, Path::new("/data/mtq/history"));
    }
}
