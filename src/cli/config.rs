//! `mtq config`, and what settings are read from: the environment, `config.toml`, files of trackers.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use etcetera::{BaseStrategy as _, base_strategy::Xdg};
use serde_json::{Value, json};

use super::client_args::{ClientOptions, ConfigVerb};
use super::config_file::{self, Key, Kind, wrong};
use super::exit::Failure;
use super::output::{self, Answer};
use super::rate::Rate;
use super::settings::{Origin, Places, Setting, Settings, Surroundings, Trackers, config_path};
use super::text;
use super::tracker::load_trackers;
use crate::client::agent::AgentConfig;
use crate::client::data_dir;
use crate::client::error::AgentError;
use crate::limits::MAX_CONFIG_LEN;
use crate::swarm::rates::RateLimits;
use crate::tracker_link::TrackerInfo;
use crate::transport::tuning::Tuning;

/// Runs `mtq config`.
///
/// # Errors
/// [`Failure`].
pub fn run(verb: &ConfigVerb) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Show(options) => {
            let settings = load(options);
            let as_json = settings.as_ref().map_or(options.json, |settings| settings.json.value);
            let result = settings.map(|settings| show(&settings));
            output::print("config-show", &result, as_json);
            result.map(drop)
        }
        ConfigVerb::Path { config, json } => {
            let result = path(config.as_deref());
            output::print("config-path", &result, *json);
            result.map(drop)
        }
    }
}

/// The settings of a client that was started with these flags, here and now.
///
/// # Errors
/// [`Failure`] when any of them is wrong, or the file cannot be read.
pub fn load(options: &ClientOptions) -> Result<Settings, Failure> {
    let places = places();
    let around = Surroundings { variable: &|name| std::env::var_os(name), places: &places };
    let text = match config_path(options.config.as_deref(), around)? {
        Some(config) => read_config(&config)?,
        None => None,
    };
    let mut settings = Settings::resolve(options, around, text.as_deref())?;
    if settings.trackers.value.is_none() {
        let kept = data_dir::trackers_path(&settings.data_dir.value);
        match load_trackers(&kept) {
            Ok(info) => {
                let value = Some(Trackers::Links(info));
                settings.trackers = Setting { value, origin: Origin::Kept(kept) };
            }
            Err(failure) if failure.code == "not-found" => {}
            Err(failure) if failure.code == "bad-tracker-info" => {
                return Err(failure.hint("give them again: --trackers FILE"));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(settings)
}

/// What an agent with these settings is started with.
///
/// # Errors
/// [`Failure`] when there are no trackers, or the file that names them cannot be read.
pub fn agent(settings: &Settings) -> Result<AgentConfig, Failure> {
    let trackers = match &settings.trackers.value {
        Some(Trackers::Links(info)) => info.clone(),
        Some(Trackers::File(path)) => {
            let named = |failure: Failure| match &settings.trackers.origin {
                Origin::Flag(_) => failure,
                origin => Failure { message: format!("{origin}: {}", failure.message), ..failure },
            };
            load_trackers(path).map_err(named)?
        }
        None => {
            return Err(Failure::new("no-trackers", "no trackers are known").hint(
                "their operator hands out tracker_info.txt; once is enough: --trackers FILE",
            ));
        }
    };
    Ok(AgentConfig {
        data_dir: settings.data_dir.value.clone(),
        trackers,
        listen: settings.listen.value,
        tuning: Tuning { max_mtu: settings.max_mtu.value, congestion: settings.congestion.value },
        limits: RateLimits { up: settings.up.value.0, down: settings.down.value.0 },
    })
}

/// Keeps the trackers for when none are given. An agent must hold the directory.
pub fn remember(data_dir: &Path, trackers: &TrackerInfo) {
    if let Err(error) = data_dir::keep_trackers(data_dir, trackers) {
        tracing::warn!(%error, "the trackers are not remembered; give them again next time");
    }
}

/// Where things of this user belong. What is relative would be elsewhere every time.
fn places() -> Places {
    let Ok(xdg) = Xdg::new() else { return Places::default() };
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    Places {
        home: absolute(xdg.home_dir().to_owned()),
        config: absolute(xdg.config_dir()),
        data: absolute(xdg.data_dir()),
        state: xdg.state_dir().and_then(absolute),
    }
}

/// The text of the file; none when it is not there and nobody named it.
fn read_config(config: &Setting<PathBuf>) -> Result<Option<String>, Failure> {
    let path = &config.value;
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_CONFIG_LEN + 1).read_to_end(&mut bytes));
    match read {
        Ok(len) if len as u64 > MAX_CONFIG_LEN => {
            Err(wrong(path, &format!("it is over the limit of {MAX_CONFIG_LEN} bytes")))
        }
        Ok(_) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
                Err(config_file::wrong_line(path, line, "it is not valid UTF-8"))
            }
        },
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            Err(wrong(path, "it is a directory"))
        }
        Err(error) => {
            let is_absent =
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            match &config.origin {
                Origin::Default if is_absent => Ok(None),
                Origin::Default => Err(AgentError::File { path: path.clone(), error }.into()),
                origin => {
                    let failure = Failure::from(AgentError::File { path: path.clone(), error });
                    Err(Failure { message: format!("{origin}: {}", failure.message), ..failure })
                }
            }
        }
    }
}

fn path(flag: Option<&Path>) -> Result<Answer, Failure> {
    let places = places();
    let around = Surroundings { variable: &|name| std::env::var_os(name), places: &places };
    let config = config_path(flag, around)?.ok_or_else(|| {
        Failure::usage("there is no home directory to look for settings in")
            .hint("set HOME, or name the file: --config FILE")
    })?;
    let json = json!({"path": text::lossy(&config.value), "exists": config.value.is_file()});
    Ok(Answer::new(json, text::path(&config.value)))
}

/// A setting as it is shown.
struct Row {
    name: &'static str,
    kind: Kind,
    value: Value,
    origin: Origin,
}

impl Row {
    fn new<T>(key: &Key, setting: &Setting<T>, value: impl Fn(&T) -> Value) -> Self {
        let origin = setting.origin.clone();
        Self { name: key.name, kind: key.kind, value: value(&setting.value), origin }
    }

    fn json(&self) -> Value {
        let mut json = origin_json(&self.origin);
        json["setting"] = self.name.into();
        json["value"] = self.value.clone();
        json
    }

    /// Its lines: one, or one for each of several values.
    fn lines(&self) -> Vec<Vec<String>> {
        let words = |value: &Value| match value {
            Value::Null => "none".to_owned(),
            Value::String(text) => text::printable(text),
            Value::Number(rate) if self.kind == Kind::Rate => format!("{rate} B/s"),
            Value::Number(bytes) => format!("{bytes} bytes"),
            other => other.to_string(),
        };
        let values = match &self.value {
            Value::Array(values) => values.iter().map(words).collect(),
            value => vec![words(value)],
        };
        let line = |(at, value)| match at {
            0 => vec![self.name.to_owned(), value, self.origin.to_string()],
            _ => vec![String::new(), value],
        };
        values.into_iter().enumerate().map(line).collect()
    }
}

fn origin_json(origin: &Origin) -> Value {
    let (from, name, line) = match origin {
        Origin::Flag(name) => ("flag", Some((*name).to_owned()), None),
        Origin::Variable(name) => ("variable", Some((*name).to_owned()), None),
        Origin::File(path, line) => ("config", Some(text::lossy(path)), Some(line)),
        Origin::Kept(path) => ("kept", Some(text::lossy(path)), None),
        Origin::Default => ("default", None, None),
    };
    json!({"from": from, "name": name, "line": line})
}

fn show(settings: &Settings) -> Answer {
    let path = |path: &PathBuf| text::lossy(path).into();
    let maybe_path = |path: &Option<PathBuf>| path.as_deref().map(text::lossy).into();
    let rate = |rate: &Rate| rate.0.into();
    let trackers = |trackers: &Option<Trackers>| match trackers {
        None => Value::Null,
        Some(Trackers::File(path)) => text::lossy(path).into(),
        Some(Trackers::Links(info)) => info.links().iter().map(ToString::to_string).collect(),
    };
    let rows = [
        Row::new(&config_file::TRACKERS, &settings.trackers, trackers),
        Row::new(&config_file::DATA_DIR, &settings.data_dir, path),
        Row::new(&config_file::LISTEN, &settings.listen, |listen| {
            listen.map(|address| address.to_string()).into()
        }),
        Row::new(&config_file::LOG_FILE, &settings.log_file, maybe_path),
        Row::new(&config_file::UP, &settings.up, rate),
        Row::new(&config_file::DOWN, &settings.down, rate),
        Row::new(&config_file::MAX_MTU, &settings.max_mtu, |mtu| mtu.get().into()),
        Row::new(&config_file::CONGESTION, &settings.congestion, |name| name.to_string().into()),
        Row::new(&config_file::DEFAULT_GROUP, &settings.default_group, |group| {
            group.as_ref().map(ToString::to_string).into()
        }),
        Row::new(&config_file::MTORRENT_DIR, &settings.mtorrent_dir, maybe_path),
        Row::new(&config_file::ON_EVENT, &settings.on_event, |command| command.clone().into()),
        Row::new(&config_file::JSON, &settings.json, |json| (*json).into()),
        Row::new(&config_file::HISTORY, &settings.history, path),
    ];
    let config = match &settings.config {
        None => json!({"path": null, "exists": false, "from": "default", "name": null}),
        Some(Setting { value, origin }) => {
            let mut config = json!({"path": text::lossy(value), "exists": settings.config_exists});
            let origin = origin_json(origin);
            config["from"] = origin["from"].clone();
            config["name"] = origin["name"].clone();
            config
        }
    };
    let mut lines = vec![match &settings.config {
        None => vec!["config".to_owned(), "none".to_owned(), "no home directory".to_owned()],
        Some(Setting { value, origin }) => {
            let note = if settings.config_exists { "" } else { ", not there" };
            vec!["config".to_owned(), text::path(value), format!("{origin}{note}")]
        }
    }];
    lines.extend(rows.iter().flat_map(Row::lines));
    let rows: Value = rows.iter().map(Row::json).collect();
    Answer::new(json!({"config": config, "settings": rows}), text::table(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_in_order() {
        let places = Places { data: Some("/data".into()), ..Places::default() };
        let around = Surroundings { variable: &|_| None, places: &places };
        let file = "up = 50000\n";
        let options = ClientOptions { config: Some("c.toml".into()), ..ClientOptions::default() };
        let settings = Settings::resolve(&options, around, Some(file)).expect("valid");
        let answer = show(&settings);
        let rows = answer.json["settings"].as_array().expect("rows");
        let names: Vec<_> = rows.iter().filter_map(|row| row["setting"].as_str()).collect();
        let keys: Vec<_> = config_file::KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names, keys);
        assert_eq!(answer.text.lines().count(), 1 + keys.len());
        assert!(answer.text.contains("50000 B/s"), "{}", answer.text);
        assert!(answer.text.contains("16250 bytes"), "{}", answer.text);
        assert!(answer.text.contains("c.toml: line 1"), "{}", answer.text);
    }
}
