//! The program's log: lines on standard error or in a file, as text or JSON. What is logged can be changed while it runs
//! (PUT `/logger`).

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{OnceLock, PoisonError, RwLock};

use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};
use vmgenie_snapshot::own_files;

use crate::fatal;
use crate::line_file::LineFile;
use crate::metrics::METRICS;

/// The level that PUT `/logger` and Firecracker's command line set when they name none.
pub const DIALECT_LEVEL: LevelFilter = LevelFilter::INFO;

/// The file for the log could not be opened.
#[derive(Debug, Error)]
#[error("could not open the log {0}")]
pub struct LogError(PathBuf, #[source] io::Error);

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// A change of the log; what is none stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// A file (lines are appended) or named pipe.
    pub path: Option<PathBuf>,
    /// The least important level that is told.
    pub level: Option<LevelFilter>,
    /// Tell the level in each line.
    pub show_level: Option<bool>,
    /// Tell the place in the source in each line.
    pub show_origin: Option<bool>,
    /// Only what comes from the modules whose paths begin so (`api::server`), with or without `vmgenie::` or the name of
    /// their crate before it.
    pub module: Option<String>,
    /// How a line looks.
    pub format: Option<LogFormat>,
}

/// Where the lines go and how they look.
struct Output {
    file: Option<LineFile>,
    show_level: bool,
    show_origin: bool,
    format: LogFormat,
    level: LevelFilter,
    module: Option<String>,
}

static OUTPUT: RwLock<Output> = RwLock::new(Output {
    file: None,
    show_level: true,
    show_origin: false,
    format: LogFormat::Text,
    level: LevelFilter::WARN,
    module: None,
});

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Begins to log from `level` on, on standard error.
pub fn start(level: LevelFilter) {
    let (filter, handle) = reload::Layer::new(targets(level, None));
    let lines = fmt::layer()
        .event_format(Line)
        .with_writer(Sink)
        .with_ansi(false);
    // Only a second call could find a subscriber there already, and that one stays.
    if tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .is_ok()
    {
        let _ = FILTER.set(handle);
    }
    write_output().level = level;
}

/// Changes the log.
///
/// # Errors
/// The file cannot be opened; nothing has changed.
pub fn update(change: &LogConfig) -> Result<(), LogError> {
    let file = match &change.path {
        Some(path) => Some(LineFile::open(path).map_err(|error| LogError(path.clone(), error))?),
        None => None,
    };
    let mut output = write_output();
    // The last words go to the new one before the old one is closed.
    let replaced = file.and_then(|file| output.file.replace(file));
    output.show_level = change.show_level.unwrap_or(output.show_level);
    output.show_origin = change.show_origin.unwrap_or(output.show_origin);
    output.format = change.format.unwrap_or(output.format);
    output.level = change.level.unwrap_or(output.level);
    if change.module.is_some() {
        output.module.clone_from(&change.module);
    }
    let file = output
        .file
        .as_ref()
        .filter(|_| output.level != LevelFilter::OFF);
    let last_words = file.map(|file| file.as_fd());
    fatal::set_log(last_words, output.format == LogFormat::Json);
    let filter = targets(output.level, output.module.as_deref());
    drop(replaced);
    // The filter's own lock is taken by whoever logs while ours is held for reading.
    drop(output);
    if let Some(handle) = FILTER.get() {
        // Fails only when there is no subscriber any more.
        let _ = handle.reload(filter);
    }
    Ok(())
}

/// The crates whose modules are known by their names alone, too.
const CRATES: [&str; 3] = ["devices", "machine", "snapshot"];

fn targets(level: LevelFilter, module: Option<&str>) -> Targets {
    let Some(module) = module else {
        return Targets::new().with_default(level);
    };
    let targets = prefixes(module).into_iter();
    targets.fold(Targets::new(), |targets, prefix| {
        targets.with_target(prefix, level)
    })
}

/// How the full names begin of the modules that are meant by `module`: `snapshot::publish`, `publish` and `vmgenie::snapshot::publish` are all
/// `vmgenie_snapshot::publish`.
fn prefixes(module: &str) -> Vec<String> {
    let short = module.strip_prefix("vmgenie::").unwrap_or(module);
    if module.starts_with("vmgenie") && short == module {
        return vec![module.to_owned()];
    }
    let mut found = vec![format!("vmgenie::{short}")];
    for name in CRATES {
        found.push(format!("vmgenie_{name}::{short}"));
        if let Some(rest) = short.strip_prefix(name)
            && (rest.is_empty() || rest.starts_with("::"))
        {
            found.push(format!("vmgenie_{name}{rest}"));
        }
    }
    found
}

fn write_output() -> std::sync::RwLockWriteGuard<'static, Output> {
    // Plain values: a panic cannot leave them half changed.
    OUTPUT.write().unwrap_or_else(PoisonError::into_inner)
}

fn read_output() -> std::sync::RwLockReadGuard<'static, Output> {
    OUTPUT.read().unwrap_or_else(PoisonError::into_inner)
}

/// One line.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let output = read_output();
        let line = format::Format::default()
            .with_target(false)
            .with_level(output.show_level)
            .with_file(output.show_origin)
            .with_line_number(output.show_origin)
            .with_ansi(output.file.is_none() && io::stderr().is_terminal());
        match output.format {
            LogFormat::Text => line.format_event(context, writer, event),
            LogFormat::Json => line
                .with_ansi(false)
                .json()
                .flatten_event(true)
                .format_event(context, writer, event),
        }
    }
}

/// Writes a line where lines go at the moment.
#[derive(Debug)]
struct Sink;

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = match &read_output().file {
            Some(file) => file.write_line(line),
            None => {
                let written = io::stderr().write_all(line);
                own_files::output_grew(line.len());
                written
            }
        };
        if written.is_err() {
            // There is nobody to tell but the metrics: a full disk or a pipe without a reader.
            METRICS.logger.missed_log_count.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_name_in_whichever_crate_it_is() {
        for name in [
            "snapshot::publish",
            "vmgenie::snapshot::publish",
            "publish",
            "vmgenie_snapshot::publish",
            "vmgenie",
            "snapshot",
        ] {
            let targets = targets(LevelFilter::INFO, Some(name));
            let would = |target| targets.would_enable(target, &tracing::Level::INFO);
            assert!(would("vmgenie_snapshot::publish"), "{name}");
            assert!(!would("hyper::proto"), "{name}");
            assert_eq!(would("vmgenie::api::server"), name == "vmgenie", "{name}");
        }
        let targets = targets(LevelFilter::INFO, Some("api::server"));
        assert!(targets.would_enable("vmgenie::api::server", &tracing::Level::INFO));
        assert!(!targets.would_enable("vmgenie_snapshot::publish", &tracing::Level::INFO));
    }

    /// All in one test: the log is one of the process.
    #[test]
    fn a_log_goes_to_its_file_in_its_format_and_is_filtered_by_level_and_module() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        start(LevelFilter::WARN);
        let change = LogConfig {
            path: Some(path.clone()),
            level: Some(LevelFilter::INFO),
            module: Some("logging".to_owned()),
            show_level: Some(false),
            ..LogConfig::default()
        };
        update(&change).unwrap();
        tracing::info!(answer = 42, "told");
        tracing::debug!("not told");
        tracing::error!(target: "vmgenie::api", "of another module");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("told answer=42"), "{text}");
        assert!(!text.contains("INFO"), "{text}");
        assert!(
            !text.contains("not told") && !text.contains("another module"),
            "{text}"
        );

        let change = LogConfig {
            format: Some(LogFormat::Json),
            show_level: Some(true),
            show_origin: Some(true),
            ..LogConfig::default()
        };
        update(&change).unwrap();
        tracing::info!(answer = 43, "told \"again\"");
        let text = std::fs::read_to_string(&path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["message"], "told \"again\"");
        assert_eq!(
            (&line["answer"], &line["level"]),
            (&43.into(), &"INFO".into())
        );
        assert!(line["filename"].as_str().unwrap().ends_with("logging.rs"));

        let nowhere = LogConfig {
            path: Some(dir.path().join("no/such/directory")),
            ..LogConfig::default()
        };
        assert!(update(&nowhere).is_err());
        update(&LogConfig {
            level: Some(LevelFilter::OFF),
            ..LogConfig::default()
        })
        .unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        tracing::error!("off");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }
}
