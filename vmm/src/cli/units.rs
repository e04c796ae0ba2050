//! Numbers with units, as people write and read them.

use std::time::Duration;

use vmgenie_api::wire::MAX_WAIT_MS;

use vmgenie_machine::config::MachineConfig;

/// The longest name of a machine, in bytes.
const MAX_ID_LEN: usize = 64;

/// A machine's name, as Firecracker takes it: 1 to [`MAX_ID_LEN`] letters, digits and hyphens.
pub(super) fn parse_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c == '-' || c.is_alphanumeric();
    if (1..=MAX_ID_LEN).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "1 to {MAX_ID_LEN} letters, digits and hyphens are allowed"
        ))
    }
}

/// Reads a size of memory: a number (1, 1.5) and, without a space or with one, K, M, G or T (also Ki,
/// KB, KiB, ..., in any case), all powers of 1024; MiB when there is no unit. The result is in MiB,
/// in the range that a machine may have.
pub fn parse_memory_mib(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let digits = text.len() - text.trim_start_matches(is_number).len();
    let (number, unit) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let parse = |digits: &str| digits.parse::<u64>().ok().filter(|_| digits.len() <= 20);
    let (Some(whole), Some(part), Some(scale)) = (
        parse(whole),
        parse(fraction),
        u32::try_from(fraction.len())
            .ok()
            .and_then(|places| 10_u64.checked_pow(places)),
    ) else {
        return Err("expected a size such as 256M, 1G or 1.5G".to_owned());
    };
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "k" | "ki" | "kb" | "kib" => 10,
        "" | "m" | "mi" | "mb" | "mib" => 20,
        "g" | "gi" | "gb" | "gib" => 30,
        "t" | "ti" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {unit:?}: use K, M, G or T")),
    };
    let of_part = u128::from(part) << shift;
    let bytes = (u128::from(whole) << shift) + of_part / u128::from(scale);
    if bytes % (1 << 20) != 0 || of_part % u128::from(scale) != 0 {
        return Err("not a whole number of MiB".to_owned());
    }
    let mib = u64::try_from(bytes >> 20).map_err(|_| "too large".to_owned())?;
    MachineConfig::new(1, mib).map_err(|error| error.to_string())?;
    Ok(mib)
}

/// Reads how long to wait: a number with a unit.
pub(super) fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text)
        .map_err(|_| "expected a time such as 500ms, 10s or 2m".to_owned())?;
    let longest = Duration::from_millis(MAX_WAIT_MS);
    if wait > longest {
        return Err(format!("{} at most", humantime::format_duration(longest)));
    }
    Ok(wait)
}

/// Reads a number of vCPUs.
pub(super) fn parse_vcpus(text: &str) -> Result<u64, String> {
    let vcpus = text
        .parse()
        .map_err(|_| "expected a whole number".to_owned())?;
    let any_memory = MachineConfig::default().memory_mib();
    MachineConfig::new(vcpus, any_memory).map_err(|error| error.to_string())?;
    Ok(vcpus)
}

/// Milliseconds with two decimals.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

/// Bytes in the largest unit in which they are 1 or more, with one decimal.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut shown = (bytes as f64, "B");
    for unit in units {
        if shown.0 < 1024.0 {
            break;
        }
        shown = (shown.0 / 1024.0, unit);
    }
    match shown {
        (_, "B") => format!("{bytes} B"),
        (number, unit) => format!("{number:.1} {unit}"),
    }
}
