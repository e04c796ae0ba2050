//! What others see of the device and its watchers: fdinfo, debugfs, uevents; and `select()`.

use std::fs;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::Subject;
use crate::outcome::{Failure, Outcome, equal, holds, success, wanted};
use crate::raw::{Device, errno};

/// Where the driver's numbers are.
const DEBUGFS: &str = "/sys/kernel/debug/sysgenid";

/// What the kernel says of an open file of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) generation: u32,
    pub(crate) acknowledged: u32,
    pub(crate) tracked: u32,
    pub(crate) outdated: u32,
    pub(crate) watchers: u32,
    pub(crate) outdated_watchers: u32,
    pub(crate) required: u32,
    pub(crate) required_watchers: u32,
    pub(crate) ready_agents: u32,
    pub(crate) role: u32,
    pub(crate) parked: u32,
}

impl Info {
    pub(crate) fn of(device: &Device) -> Outcome<Self> {
        let path = format!("/proc/self/fdinfo/{}", device.raw());
        let text = read(&path)?;
        let line = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find_map(|(key, value)| (key == name).then(|| value.trim().parse().ok())?)
                .ok_or_else(|| Failure::new(format!("{path} has no {name}: {text}")))
        };
        Ok(Self {
            generation: line("generation")?,
            acknowledged: line("acknowledged")?,
            tracked: line("tracked")?,
            outdated: line("outdated")?,
            watchers: line("watchers")?,
            outdated_watchers: line("outdated_watchers")?,
            required: line("required")?,
            required_watchers: line("required_watchers")?,
            ready_agents: line("ready_agents")?,
            role: line("role")?,
            parked: line("parked")?,
        })
    }
}

fn read(path: &str) -> Outcome<String> {
    fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("could not read {path}: {error}")))
}

/// A number in debugfs.
pub(crate) fn shown(name: &str) -> Outcome<u32> {
    let path = format!("{DEBUGFS}/{name}");
    let text = read(&path)?;
    text.trim()
        .parse()
        .map_err(|_| Failure::new(format!("{path} is no number: {text:?}")))
}

pub(crate) fn file_info(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    // In a generation of its own: whoever ended in the last one without a word is remembered in that.
    let start = subject.next(&device)?;
    wanted("acknowledgement", device.acknowledge(start), Ok(4))?;
    let fresh = Info {
        generation: start,
        acknowledged: start,
        tracked: 1,
        outdated: 0,
        watchers: 1,
        outdated_watchers: 0,
        required: 1,
        required_watchers: 0,
        ready_agents: 0,
        role: 0,
        parked: 0,
    };
    equal("a fresh file", Info::of(&device)?, fresh)?;
    let other = subject.open_with(libc::O_RDONLY)?;
    let untracked = Info {
        tracked: 0,
        required: 0,
        watchers: 2,
        ..fresh
    };
    equal("a read-only one beside it", Info::of(&other)?, untracked)?;
    let new = subject.next(&device)?;
    let outdated = Info {
        generation: new,
        outdated: 1,
        outdated_watchers: 1,
        required_watchers: 1,
        ..untracked
    };
    equal("both outdated, the other", Info::of(&other)?, outdated)?;
    let tracked = Info {
        tracked: 1,
        required: 1,
        ..outdated
    };
    equal("the first", Info::of(&device)?, tracked)?;
    for (name, number) in [
        ("generation", new),
        ("watchers", 2),
        ("outdated_watchers", 1),
    ] {
        equal(name, shown(name)?, number)?;
    }
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    let adapted = Info {
        acknowledged: new,
        outdated: 0,
        outdated_watchers: 0,
        required_watchers: 0,
        ..tracked
    };
    equal("after the acknowledgement", Info::of(&device)?, adapted)?;
    equal("outdated_watchers", shown("outdated_watchers")?, 0)?;
    wanted("tracking off", device.track(false), Ok(0))?;
    equal("after tracking off", Info::of(&device)?.tracked, 0)?;
    drop((device, other));
    equal("watchers", shown("watchers")?, 0)?;
    fits_together(subject)
}

/// While one thread begins generations and acknowledges them at once, what another sees of the same file is
/// of one instant.
fn fits_together(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let changing = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let new = subject.next(&device)?;
                wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
            }
            Ok(())
        });
        let end = Instant::now() + Duration::from_secs(2);
        let mut result = Ok(());
        while result.is_ok() && Instant::now() < end {
            result = Info::of(&device).and_then(|info| {
                let adapted = info.acknowledged == info.generation;
                holds(
                    &format!("the lines fit together: {info:?}"),
                    adapted != (info.outdated == 1) && info.outdated == info.outdated_watchers,
                )
            });
        }
        stop.store(true, Ordering::Relaxed);
        let changed = changing.join();
        result?;
        changed.unwrap_or_else(|_| Err(Failure::new("a thread panicked")))
    })
}

pub(crate) fn select(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    equal("readable, up to date", is_readable(&device)?, false)?;
    let new = subject.next(&device)?;
    equal("readable, outdated", is_readable(&device)?, true)?;
    equal("readable, asked again", is_readable(&device)?, true)?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    equal("readable after it", is_readable(&device)?, false)
}

fn is_readable(device: &Device) -> Outcome<bool> {
    // SAFETY: a set of zeros is the empty one, and descriptors are below its limit.
    unsafe {
        let mut set: libc::fd_set = mem::zeroed();
        libc::FD_SET(device.raw(), &mut set);
        let mut limit: libc::timeval = mem::zeroed();
        let none = std::ptr::null_mut();
        let ready = libc::select(device.raw() + 1, &mut set, none, none, &mut limit);
        if ready < 0 {
            return Err(Failure::new(format!("select: errno {}", errno())));
        }
        Ok(libc::FD_ISSET(device.raw(), &set))
    }
}

pub(crate) fn uevents(subject: Subject<'_>) -> Outcome {
    let events = Uevents::listen()?;
    let device = subject.open()?;
    for min in [0, 0, 1000] {
        let before = subject.current(&device)?;
        let far = u64::from(before) + min;
        wanted("trigger", device.trigger(far), Ok(0))?;
        let new = success("read", device.generation())?;
        let event = events.next(Duration::from_secs(5))?;
        let event = event.ok_or_else(|| Failure::new("no uevent came"))?;
        let header = "change@/devices/virtual/misc/sysgenid";
        equal(
            "its header",
            event.first().map(String::as_str),
            Some(header),
        )?;
        for line in [
            "ACTION=change",
            "SUBSYSTEM=misc",
            "DEVNAME=sysgenid",
            "DEVMODE=0666",
            &format!("SYSGENID={new}"),
        ] {
            let there = event.iter().any(|said| said == line);
            holds(&format!("{line} in {event:?}"), there)?;
        }
        let acknowledged = device.acknowledge(new);
        wanted("acknowledgement", acknowledged, Ok(4))?;
        let more = events.next(Duration::from_millis(100))?;
        equal("one generation, one uevent", more, None)?;
    }
    Ok(())
}

/// The kernel's uevents, as udev hears them.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    pub(crate) fn listen() -> Outcome<Self> {
        let failed = |what: &str| Failure::new(format!("{what}: errno {}", errno()));
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes integers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
        if fd < 0 {
            return Err(failed("socket"));
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: an address of zeros is a valid one.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        // Those of the kernel; 2 would be udev's.
        address.nl_groups = 1;
        let length = size_of_val(&address) as u32;
        // SAFETY: the address outlives the call, and has that length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(failed("bind"));
        }
        Ok(Self(fd))
    }

    /// The lines of the device's next event that tells of a generation; none within the limit.
    pub(crate) fn next(&self, limit: Duration) -> Outcome<Option<Vec<String>>> {
        let end = Instant::now().checked_add(limit);
        loop {
            let left = end.map_or(limit, |end| end.saturating_duration_since(Instant::now()));
            let mut entry = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let milliseconds = left.as_millis().try_into().unwrap_or(i32::MAX);
            // SAFETY: there is one entry, which outlives the call.
            if unsafe { libc::poll(&mut entry, 1, milliseconds) } == 0 {
                return Ok(None);
            }
            let mut buffer = [0u8; 4096];
            // SAFETY: the buffer is writable for its whole length.
            let length = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            let length = usize::try_from(length)
                .map_err(|_| Failure::new(format!("recv: errno {}", errno())))?;
            let lines: Vec<String> = buffer[..length]
                .split(|byte| *byte == 0)
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect();
            if lines.iter().any(|line| line.starts_with("SYSGENID=")) {
                return Ok(Some(lines));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_events_listening_ends_at_its_limit() {
        let events = Uevents::listen().unwrap();
        assert_eq!(events.next(Duration::from_millis(10)).unwrap(), None);
    }
}
