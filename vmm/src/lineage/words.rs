//! How what machines tell is said to people.

use vmgenie_api::wire::{Missing, State};

use super::{Generation, Machine};

/// How much of an ID is shown.
const SHORT: usize = 8;

/// The beginning of an ID.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(SHORT).collect()
}

/// How long something took.
pub(crate) fn span(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        1_000_000..100_000_000 => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// How long ago something was.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How well it is with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Its guest knows who it is.
    Ready,
    /// Its guest is on the way.
    Adapting,
    /// Nobody in it could tell, or it stands still.
    Quiet,
    /// It should answer, and does not.
    Silent,
}

/// What a machine does, in some words.
pub(super) fn status(machine: &Machine) -> (Mood, String) {
    let said = |mood, text: &str| (mood, text.to_owned());
    if machine.api_socket.is_none() {
        return said(Mood::Quiet, "has no API");
    }
    match (machine.state, &machine.ready) {
        (None, _) => said(Mood::Silent, "does not answer"),
        (Some(State::NotStarted), _) => said(Mood::Quiet, "not started"),
        (Some(State::Paused), _) => said(Mood::Quiet, "paused"),
        (Some(State::Running), None) => said(Mood::Quiet, "running"),
        (Some(State::Running), Some(ready)) => match &ready.missing[..] {
            _ if ready.ready => said(Mood::Ready, "ready"),
            [Missing::Driver] => said(Mood::Quiet, "running, no driver"),
            [] => said(Mood::Adapting, "adapting"),
            missing => (Mood::Adapting, format!("lacks {}", lacks(missing))),
        },
    }
}

/// What is missing, by the words of the API.
pub(crate) fn lacks(missing: &[Missing]) -> String {
    let word = |missing: &Missing| match missing {
        Missing::Driver => "driver",
        Missing::Reseeded => "reseeded",
        Missing::Reached => "reached",
        Missing::Chain => "chain",
        Missing::Watchers => "watchers",
        Missing::Agent => "agent",
        Missing::Ready => "ready",
        Missing::Identity => "identity",
    };
    let words: Vec<_> = missing.iter().map(word).collect();
    words.join(", ")
}

/// The times of the stages that a machine has come to, with their names.
pub(super) fn stages(machine: &Machine) -> Vec<(&'static str, u64)> {
    let ready = machine.ready.iter();
    let times = ready.flat_map(|ready| {
        [
            ("reseeded", ready.reseeded_us),
            ("identity", ready.identity_us),
            ("adapted", ready.adapted_us),
            ("ready", ready.service_us),
        ]
    });
    times
        .filter_map(|(name, us)| us.map(|us| (name, us)))
        .collect()
}

/// What is said of generations that have no machine any more.
pub(super) fn ended(generation: &Generation) -> String {
    match (generation.ended, &generation.name) {
        (1, Some(name)) => format!("{name} (ended)"),
        (1, None) => "(ended)".to_owned(),
        (count, _) => format!("({count} ended)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_precisely_as_they_matter() {
        assert_eq!([span(0), span(1544)], ["0.0 ms", "1.5 ms"]);
        assert_eq!([span(1_230_000), span(300_000_000)], ["1.23 s", "300 s"]);
        assert_eq!([age(999), age(119_999)], ["0 s", "119 s"]);
        assert_eq!(
            [age(180_000), age(7_200_000), age(172_800_000)],
            ["3 min", "2 h", "2 days"]
        );
        assert_eq!(short("63c8a1f2-0000"), "63c8a1f2");
        assert_eq!(short("\u{fc}"), "\u{fc}");
    }
}
