//! The agent: runs one job in the KVM host and reports what became of it.
//!
//! As process 1 of the emulated host it sets the machine up, starts itself again as an ordinary
//! process for the job, collects orphans meanwhile, and ends the machine. On a machine with a KVM
//! of its own only the second half is used.

mod batch;
mod command;
mod init;
mod queue;
mod supervise;

use std::fs::{self, File};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use vm_agent::{Entry, Job, STATUS_CANNOT_RUN, Work};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        _ if std::process::id() == 1 => init::run(),
        [_, "run", job, report] => run_job(job, report),
        [_, "supervise", secs, program, rest @ ..] => match secs.parse() {
            Ok(secs) => supervise::run(Duration::from_secs(secs), program, rest),
            Err(_) => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: vm-agent run JOB REPORT | vm-agent supervise SECONDS PROGRAM ARGS...");
    ExitCode::from(2)
}

/// Runs the job in the file `job` and writes its report to `report`.
fn run_job(job: &str, report: &str) -> ExitCode {
    let result = File::create(report)
        .map_err(|e| format!("could not open the report {report}: {e}"))
        .and_then(|report| {
            let status = match read_job(job) {
                Ok(job) => run_work(&job, &report),
                Err(message) => {
                    eprintln!("vm-agent: {message}");
                    STATUS_CANNOT_RUN
                }
            };
            write_entry(&report, &Entry::End(status))
        });
    if let Err(message) = result {
        eprintln!("vm-agent: {message}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn read_job(path: &str) -> Result<Job, String> {
    let text = fs::read(path).map_err(|e| format!("could not read the job {path}: {e}"))?;
    serde_json::from_slice(&text).map_err(|e| format!("could not understand the job {path}: {e}"))
}

fn run_work(job: &Job, report: &File) -> i32 {
    for (name, value) in &job.env {
        // SAFETY: the agent has no second thread yet; it starts some only inside `work`.
        unsafe { std::env::set_var(name, value) };
    }
    match &job.work {
        Work::Command { argv } => command::run(argv),
        Work::Terminal {
            argv,
            rows,
            columns,
        } => command::run_on_terminal(argv, *rows, *columns),
        Work::Tests(plan) => batch::run(plan, report),
    }
}

/// One write, so that a reader sees all of the entry or none.
fn write_entry(mut report: &File, entry: &Entry) -> Result<(), String> {
    let line = entry.to_line().map_err(|e| e.to_string())?;
    report
        .write_all(line.as_bytes())
        .map_err(|e| format!("could not write the report: {e}"))
}
