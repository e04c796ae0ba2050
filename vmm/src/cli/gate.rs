//! `--gate` of `restore` and `clone`.

use vmgenie_api::wire::{Gate, OnTimeout};

use super::units::parse_wait;
use crate::words::{Words, unknown};

/// Every option of it.
const OPTIONS: &str = "link, vsock, agents=N, timeout=TIME, on-timeout=keep|kill|open";

/// `[link][,vsock][,agents=N][,timeout=TIME][,on-timeout=WHAT]`; both parts if none is named.
pub(super) fn parse_gate(text: &str) -> Result<Gate, String> {
    let words = Words::of(text);
    let (first, rest) = words.parts();
    let split = |word: &'_ str| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    };
    let rest = rest.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    let mut gate = Gate::default();
    let (mut link, mut vsock) = (false, false);
    for (name, value) in std::iter::once(split(first)).chain(rest) {
        match (name.as_str(), value.as_deref()) {
            ("link", None) => link = true,
            ("vsock", None) => vsock = true,
            ("agents", Some(value)) => {
                let agents = value.parse();
                gate.agents =
                    Some(agents.map_err(|_| format!("{value:?} is no number of agents"))?);
            }
            ("timeout", Some(value)) => gate.timeout_ms = timeout_ms(value)?,
            ("on-timeout", Some(value)) => gate.on_timeout = on_timeout(value)?,
            (name, _) => return unknown(name, OPTIONS),
        }
    }
    if link || vsock {
        (gate.link, gate.vsock) = (link, vsock);
    }
    Ok(gate)
}

fn timeout_ms(text: &str) -> Result<u64, String> {
    let timeout = parse_wait(text)?;
    match u64::try_from(timeout.as_millis()) {
        Ok(ms @ 1..) => Ok(ms),
        _ => Err("timeout: 1ms at least".to_owned()),
    }
}

fn on_timeout(text: &str) -> Result<OnTimeout, String> {
    match text {
        "keep" => Ok(OnTimeout::Keep),
        "kill" => Ok(OnTimeout::Kill),
        "open" => Ok(OnTimeout::Open),
        _ => Err(format!("on-timeout={text}: it is keep, kill or open")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_of_the_parts_that_are_named_or_of_both() {
        let default = Gate::default();
        assert_eq!(parse_gate("link,vsock").unwrap(), default);
        assert_eq!(parse_gate("on-timeout=keep").unwrap(), default);
        let link = Gate {
            vsock: false,
            agents: Some(1),
            timeout_ms: 500,
            on_timeout: OnTimeout::Kill,
            ..default.clone()
        };
        let text = "link,agents=1,timeout=500ms,on-timeout=kill";
        assert_eq!(parse_gate(text).unwrap(), link);
        let vsock = Gate {
            link: false,
            on_timeout: OnTimeout::Open,
            ..default
        };
        assert_eq!(parse_gate("on-timeout=open,vsock").unwrap(), vsock);
    }

    #[test]
    fn a_gate_that_makes_no_sense_is_refused() {
        for wrong in [
            "",
            "tap",
            "link=1",
            "link,,vsock",
            "timeout",
            "timeout=0s",
            "timeout=11m",
            "timeout=soon",
            "agents=-1",
            "agents",
            "on-timeout=wait",
            "on-timeout",
        ] {
            assert!(parse_gate(wrong).is_err(), "{wrong}");
        }
    }
}
