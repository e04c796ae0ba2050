//! Steps that take long: a bar on a terminal, a line at begin and end elsewhere, a log always.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::lifetime;

/// How many of a log's last lines an error shows.
const TAIL_LINES: usize = 25;

/// All bars of this program.
#[derive(Clone, Default)]
pub(crate) struct Progress {
    bars: MultiProgress,
    /// What lines begin with if something else is shown meanwhile. Then there are no bars.
    beside: Option<&'static str>,
}

/// One step and its bar.
pub(crate) struct Step {
    /// As lines show it.
    name: String,
    bar: ProgressBar,
    begun: Instant,
    counted: Option<fn(&str) -> bool>,
}

impl Progress {
    /// Shows steps by lines that begin with `who`, between those of something else that goes on.
    pub(crate) fn beside(who: &'static str) -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            beside: Some(who),
        }
    }

    /// Begins a step whose length is not known.
    pub(crate) fn step(&self, name: &str) -> Step {
        self.begin(name, ProgressBar::new_spinner(), None)
    }

    /// Begins a step whose output has about `total` lines of the kind that `counted` knows.
    pub(crate) fn counted_step(&self, name: &str, total: u64, counted: fn(&str) -> bool) -> Step {
        self.begin(name, ProgressBar::new(total), Some(counted))
    }

    fn begin(&self, name: &str, bar: ProgressBar, counted: Option<fn(&str) -> bool>) -> Step {
        let template = match counted {
            Some(_) => "{prefix:.bold} [{bar:30}] {percent}% {elapsed} {wide_msg:.dim}",
            None => "{prefix:.bold} {spinner} {elapsed} {wide_msg:.dim}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let bar = self.bars.add(bar);
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        let shown = match self.beside {
            Some(who) => format!("{who}: {name}"),
            None => name.to_owned(),
        };
        if self.beside.is_some() || !std::io::stderr().is_terminal() {
            eprintln!("{shown} ...");
        }
        Step {
            name: shown,
            bar,
            begun: Instant::now(),
            counted,
        }
    }
}

impl Step {
    /// Says what the step is doing now.
    pub(crate) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Ends the step well.
    pub(crate) fn done(self) {
        self.bar.finish_and_clear();
        let seconds = self.begun.elapsed().as_secs_f64();
        eprintln!("{}: done in {seconds:.1} s", self.name);
    }

    /// Runs a command to its end, its output appended to the file `log`.
    ///
    /// The error of a command that fails shows the end of its output and where all of it is.
    pub(crate) fn run(&self, command: &mut Command, log: &Path) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("could not open {}", log.display()))?;
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        command
            .stdin(std::process::Stdio::null())
            .stdout(writer.try_clone().context("could not copy a pipe")?)
            .stderr(writer);
        let child = lifetime::bind(command).spawn();
        // The command still holds the writing ends, and the reader would wait for them for good.
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut child = child.with_context(|| format!("could not start {program}"))?;
        let mut tail = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.with_context(|| format!("could not read what {program} says"))?;
            file.write_all(&line)
                .and_then(|()| file.write_all(b"\n"))
                .with_context(|| format!("could not write {}", log.display()))?;
            self.follow(String::from_utf8_lossy(&line).trim_end(), &mut tail);
        }
        let status = child
            .wait()
            .with_context(|| format!("could not wait for {program}"))?;
        if !status.success() {
            let tail = Vec::from(tail).join("\n");
            bail!(
                "{}: {program} failed ({status}):\n{tail}\n(all of it is in {})",
                self.name,
                log.display()
            );
        }
        Ok(())
    }

    fn follow(&self, line: &str, tail: &mut VecDeque<String>) {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
        if self.counted.is_some_and(|counted| counted(line)) {
            self.bar.inc(1);
        }
        self.say(line.trim());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
