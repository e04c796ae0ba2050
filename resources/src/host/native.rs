//! The job on this machine's own KVM.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vm_agent::{Job, Report, Work};

use super::{Request, environment};
use crate::lifetime;
use crate::setup::Resources;

/// Runs the job through the agent, which is the same program that runs it in the emulated host.
pub(super) fn run(resources: &Resources, request: &Request) -> Result<Report> {
    let run = resources.cache.run_dir()?;
    let vmgenie = request.vmgenie.as_ref().map(|path| path.to_string_lossy());
    let guests = resources.guests.to_string_lossy();
    let qemu = resources.peer.program();
    let image = resources.image.as_ref().map(|path| path.to_string_lossy());
    let runtimes = resources
        .runtimes
        .as_ref()
        .map(|path| path.to_string_lossy());
    let mut env = environment(
        &guests,
        &qemu.to_string_lossy(),
        vmgenie.as_deref(),
        image.as_deref(),
        runtimes.as_deref(),
        "native",
    );
    // Temporary files of the job go with this run, whatever ends it.
    let temporary = run.path().join("tmp");
    fs::create_dir(&temporary).context("could not make a directory for temporary files")?;
    env.push(("TMPDIR".into(), temporary.to_string_lossy().into_owned()));
    let job = Job {
        env,
        work: request.work.clone(),
        work_disk: false,
    };
    let job_path = run.path().join("job.json");
    let report_path = run.path().join("report.json");
    fs::write(&job_path, serde_json::to_vec(&job)?).context("could not write the job")?;
    let mut command = Command::new(&request.agent);
    // The user's own terminal serves where the emulated host needs one of its own.
    if let Work::Terminal { argv, .. } = &request.work {
        return on_this_terminal(argv, &job);
    }
    command.arg("run").arg(&job_path).arg(&report_path);
    let mut child = lifetime::bind(&mut command)
        .spawn()
        .context("could not start the agent")?;
    let end = request
        .timeout_secs
        .map(|secs| Instant::now() + Duration::from_secs(secs));
    while child
        .try_wait()
        .context("could not wait for the agent")?
        .is_none()
    {
        if end.is_some_and(|end| Instant::now() >= end) {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the job took longer than its time limit and was ended");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = fs::read_to_string(&report_path).unwrap_or_default();
    Report::parse(&text)
        .ok()
        .context("the agent ended without a report")
}

fn on_this_terminal(argv: &[String], job: &Job) -> Result<Report> {
    let (program, args) = argv.split_first().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(args).envs(job.env.iter().cloned());
    let status = lifetime::bind(&mut command)
        .status()
        .with_context(|| format!("could not run {program}"))?;
    Ok(Report::of_status(vm_agent::exit_status(status)))
}
