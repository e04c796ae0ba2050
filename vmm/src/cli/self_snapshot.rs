//! `--self-snapshot` of `run` and `restore`.

use std::time::Duration;

use vmgenie_api::wire::{MAX_SELF_SNAPSHOTS, SelfSnapshot};

use super::cooperation::parse_quiesce;
use super::units::parse_wait;
use crate::words::{Words, number, unknown};

/// Every option of it.
const OPTIONS: &str = "count=N, interval=TIME, quiesce=TIME";

/// `DIR[,count=N][,interval=TIME][,quiesce=TIME]`.
pub(super) fn parse_self_snapshot(text: &str) -> Result<SelfSnapshot, String> {
    let words = Words::of(text);
    let (directory, options) = words.parts();
    if directory.is_empty() {
        return Err("the directory is missing".to_owned());
    }
    let mut own = SelfSnapshot::into(directory.into());
    for option in options {
        match option {
            ("count", Some(value)) => own.count = count(value)?,
            ("interval", Some(value)) => own.interval_ms = ms(parse_wait(value)?),
            ("quiesce", Some(value)) => own.quiesce_ms = ms(parse_quiesce(value)?),
            (name, _) => return unknown(name, OPTIONS),
        }
    }
    Ok(own)
}

fn count(text: &str) -> Result<u32, String> {
    let count = u32::try_from(number(text)?).ok();
    let count = count.filter(|count| (1..=MAX_SELF_SNAPSHOTS).contains(count));
    count.ok_or_else(|| format!("count={text}: 1 to {MAX_SELF_SNAPSHOTS}"))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_directory_is_read_with_its_options() {
        let own = parse_self_snapshot("/s").unwrap();
        assert_eq!(own, SelfSnapshot::into("/s".into()));
        let own = parse_self_snapshot("/a,,b,count=3,interval=2s,quiesce=500ms").unwrap();
        assert_eq!(own.directory, Path::new("/a,b"));
        assert_eq!((own.count, own.interval_ms, own.quiesce_ms), (3, 2000, 500));
        for wrong in [
            "",
            ",count=1",
            "/s,count",
            "/s,count=0",
            "/s,count=10001",
            "/s,count=4294967297",
            "/s,interval=soon",
            "/s,quiesce=0s",
            "/s,tag=1",
        ] {
            assert!(parse_self_snapshot(wrong).is_err(), "{wrong}");
        }
    }
}
