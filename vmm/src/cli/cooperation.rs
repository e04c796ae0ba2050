//! How a guest takes part in its snapshot: what is asked on the command line, and what is told.

use std::time::Duration;

use clap::{Args, ValueEnum};
use vmgenie_api::wire::{CooperativeCreate, CooperativeCreated, SnapshotFallback, SnapshotHow};

use super::units::parse_wait;

/// How a guest takes part in its snapshot.
#[derive(Debug, Clone, Args)]
pub struct CooperationArgs {
    /// Have the guest, which runs, take part: its programs make themselves quiet, and its kernel stands still.
    #[arg(long)]
    pub cooperative: bool,
    /// How long the guest may take to stand still, such as 500ms, 10s or 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_quiesce, requires = "cooperative")]
    pub quiesce: Duration,
    /// What happens if the guest does not take part.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = FallbackArg::Refuse, requires = "cooperative")]
    pub fallback: FallbackArg,
}

/// What happens to a snapshot in which the guest does not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FallbackArg {
    /// It is refused; the guest goes on.
    Refuse,
    /// It is taken without the guest.
    Plain,
}

/// How the guest shall take part, if it shall.
pub(super) fn cooperative(args: &CooperationArgs) -> Option<CooperativeCreate> {
    args.cooperative.then(|| asked(args.quiesce, args.fallback))
}

/// What the guest is asked for.
pub(super) fn asked(quiesce: Duration, fallback: FallbackArg) -> CooperativeCreate {
    CooperativeCreate {
        quiesce_ms: u64::try_from(quiesce.as_millis()).unwrap_or(u64::MAX),
        fallback: match fallback {
            FallbackArg::Refuse => SnapshotFallback::Refuse,
            FallbackArg::Plain => SnapshotFallback::Plain,
        },
    }
}

/// How a snapshot was taken, in words.
pub(super) fn how_taken(made: &CooperativeCreated) -> String {
    let waited = &made.waited_for;
    let named = [
        (waited.hooks, "hooks"),
        (waited.parked, "parked programs"),
        (waited.frozen, "frozen programs"),
    ];
    let waited: Vec<&str> = named
        .into_iter()
        .filter_map(|(there, name)| there.then_some(name))
        .collect();
    match (made.how, waited.is_empty()) {
        (SnapshotHow::ForkPoint, true) => "at the guest's fork point".to_owned(),
        (SnapshotHow::ForkPoint, false) => {
            format!("at the guest's fork point, after {}", waited.join(", "))
        }
        (SnapshotHow::KernelOnly, _) => {
            "at the fork point of the guest's kernel; it has no agent".to_owned()
        }
        (SnapshotHow::Plain, _) => format!(
            "without the guest: {}",
            made.why_plain.as_deref().unwrap_or("it did not take part")
        ),
    }
}

/// A time within which a guest may be asked to stand still.
pub(super) fn parse_quiesce(text: &str) -> Result<Duration, String> {
    let time = parse_wait(text)?;
    match time.as_millis() {
        0 => Err("1ms at least".to_owned()),
        _ => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_be_quiet_has_bounds() {
        for (text, ms) in [("10s", 10_000), ("1ms", 1), ("10m", 600_000)] {
            assert_eq!(parse_quiesce(text).unwrap().as_millis(), ms);
        }
        for text in ["0s", "999us", "601s", "10", "-1s", "soon", ""] {
            assert!(parse_quiesce(text).is_err(), "{text:?}");
        }
    }
}
