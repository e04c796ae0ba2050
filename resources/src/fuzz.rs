//! `cargo xtask fuzz`: the fuzz targets, on a toolchain that can instrument them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::cache::Cache;
use crate::lifetime;
use crate::progress::Progress;

/// The targets, in the order in which they run.
const TARGETS: [&str; 4] = ["queues", "registers", "state", "api"];
/// What runs them.
const CARGO_FUZZ: &str = "0.13.2";
/// Names the toolchain, in place of `nightly`.
const TOOLCHAIN: &str = "VMGENIE_FUZZ_TOOLCHAIN";
/// A run that takes longer for one input, in seconds, is a finding, ...
const TIMEOUT: u32 = 10;
/// ... and one that takes more memory, in MiB, of which the sanitizer has the most.
const MEMORY_MIB: u32 = 1024;

/// Runs one target, or all, for `seconds` each. What was found lies in the directory that is named at the end.
pub(crate) fn fuzz(target: Option<&str>, seconds: u64) -> Result<i32> {
    let targets: Vec<&str> = match target {
        None => TARGETS.to_vec(),
        Some(name) if TARGETS.contains(&name) => vec![name],
        Some(name) => bail!("there is no fuzz target {name}: {}", TARGETS.join(", ")),
    };
    let cache = Cache::open()?;
    let toolchain = toolchain()?;
    let tool = cargo_fuzz(&cache)?;
    let work = cache.place("fuzz", "1");
    let mut found = Vec::new();
    for target in targets {
        let corpus = work.join("corpus").join(target);
        fs::create_dir_all(&corpus).context("could not make the directory of the corpus")?;
        let seeds = seeds(target, &work.join("seeds").join(target))?;
        let findings = work.join("findings").join(target);
        fs::create_dir_all(&findings).context("could not make the directory of the findings")?;
        let mut prefix = findings.clone().into_os_string();
        prefix.push("/");
        let mut artifacts = OsString::from("-artifact_prefix=");
        artifacts.push(prefix);
        eprintln!("fuzzing {target} for {seconds} s");
        let mut command = command(&tool, &toolchain);
        command
            .arg("run")
            .arg("--fuzz-dir")
            .arg(package())
            .arg("--target-dir")
            .arg(build::workspace().join("target/fuzz"))
            .arg(target)
            .args([&corpus, &seeds])
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .args(["-max_len=4096", "-print_final_stats=1"])
            .arg(artifacts);
        let status = lifetime::bind(&mut command).status();
        let status = status.context("could not run cargo-fuzz")?;
        if !status.success() {
            found.push(findings);
        }
    }
    if found.is_empty() {
        return Ok(0);
    }
    for findings in found {
        println!("found something: {}", findings.display());
    }
    Ok(1)
}

/// The package of the targets.
fn package() -> PathBuf {
    build::workspace().join("fuzz/targets")
}

fn command(tool: &Path, toolchain: &str) -> Command {
    let mut command = Command::new(tool);
    // Called by its own path it wants to hear its name first.
    command.arg("fuzz").current_dir(package());
    command.env("RUSTUP_TOOLCHAIN", toolchain);
    // What cargo has set for us is of another toolchain.
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// A toolchain that can instrument programs, by rustup.
fn toolchain() -> Result<String> {
    let name = std::env::var(TOOLCHAIN).unwrap_or_else(|_| "nightly".to_owned());
    let there = Command::new("rustup")
        .args(["run", &name, "rustc", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(name);
    }
    bail!(
        "fuzzing needs a nightly toolchain, and rustup has none called {name:?} here; install one with\n    \
         rustup toolchain install nightly\nor name another one in {TOOLCHAIN}"
    );
}

/// cargo-fuzz, built once.
fn cargo_fuzz(cache: &Cache) -> Result<PathBuf> {
    let place = cache.place("cargo-fuzz", CARGO_FUZZ);
    let _lock = cache.lock()?;
    if !place.exists() {
        let progress = Progress::default();
        let step = progress.step("cargo-fuzz");
        let log = cache.log("cargo-fuzz")?;
        cache.make(&place, |dir| {
            let mut install = build::cargo(&["install", "cargo-fuzz", "--locked", "--version"]);
            step.run(install.arg(CARGO_FUZZ).arg("--root").arg(dir), &log)
        })?;
        step.done();
    }
    Ok(place.join("bin/cargo-fuzz"))
}

/// The seeds of a target as the fuzzer reads them.
fn seeds(target: &str, to: &Path) -> Result<PathBuf> {
    let from = build::workspace().join("fuzz/seeds").join(target);
    fs::create_dir_all(to).context("could not make the directory of the seeds")?;
    for entry in fs::read_dir(&from).with_context(|| format!("no seeds in {}", from.display()))? {
        let path = entry.context("could not list the seeds")?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let text = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
        let bytes = match path.extension().is_some_and(|is| is == "hex") {
            true => from_hex(&String::from_utf8_lossy(&text))
                .with_context(|| format!("{} is no hexadecimal text", path.display()))?,
            false => text,
        };
        fs::write(to.join(name), bytes).context("could not write a seed")?;
    }
    Ok(to.to_owned())
}

/// The bytes of pairs of hexadecimal digits, up to a `#` on each line. The same as the crate of the targets has it, which we do not
/// want to build for that.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let lines = text.lines().map(|line| line.split('#').next());
    let digits: String = lines.flatten().flat_map(str::split_whitespace).collect();
    let pair = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_that_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        for target in TARGETS {
            let to = seeds(target, &dir.path().join(target)).unwrap();
            assert!(fs::read_dir(to).unwrap().count() > 0);
            let program = format!("fuzz_targets/{target}.rs");
            assert!(package().join(program).exists());
        }
    }

    #[test]
    fn hexadecimal_text_has_comments() {
        assert_eq!(from_hex("00 1f # x\nAb\n"), Some(vec![0, 0x1f, 0xab]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
