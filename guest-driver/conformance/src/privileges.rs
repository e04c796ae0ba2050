//! Who may begin a generation.

use crate::Subject;
use crate::outcome::{Failure, Outcome, equal, refused, wanted};
use crate::process::isolated;
use crate::raw::errno;

const NOBODY: u32 = 65534;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_CHECKPOINT_RESTORE: u32 = 40;

pub(crate) fn unprivileged(subject: Subject<'_>) -> Outcome {
    isolated(|| {
        become_nobody()?;
        let device = subject.open()?;
        let current = subject.current(&device)?;
        wanted("poll", device.poll(0), Ok(0))?;
        refused("read", device.generation(), libc::EAGAIN)?;
        wanted("acknowledgement", device.acknowledge(current), Ok(4))?;
        wanted("wait", device.wait(1000), Ok(0))?;
        wanted("tracking", device.track(true), Ok(0))?;
        refused("trigger", device.trigger(0), libc::EACCES)?;
        refused("trigger", device.trigger(u64::MAX), libc::EACCES)?;
        equal("the counter", subject.current(&device)?, current)
    })
}

pub(crate) fn user_namespace(subject: Subject<'_>) -> Outcome {
    for nobody in [false, true] {
        isolated(|| {
            if nobody {
                become_nobody()?;
            }
            enter_user_namespace(if nobody { NOBODY } else { 0 })?;
            let device = subject.open()?;
            refused(
                "trigger by a namespace's root",
                device.trigger(0),
                libc::EACCES,
            )
        })?;
    }
    Ok(())
}

pub(crate) fn capabilities(subject: Subject<'_>) -> Outcome {
    let with = |capabilities: &'static [u32], should| {
        isolated(move || {
            let device = subject.open()?;
            keep_capabilities(capabilities)?;
            let what = format!("trigger with capabilities {capabilities:?}");
            wanted(&what, device.trigger(0), should)
        })
    };
    with(&[CAP_SYS_ADMIN], Ok(0))?;
    with(&[CAP_CHECKPOINT_RESTORE], Ok(0))?;
    with(&[], Err(libc::EACCES))
}

fn done(what: &str, result: i32) -> Outcome {
    if result < 0 {
        return Err(Failure::new(format!("{what}: errno {}", errno())));
    }
    Ok(())
}

pub(crate) fn become_nobody() -> Outcome {
    // SAFETY: an empty list of groups is read from nowhere.
    done("setgroups", unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: the calls take integers, and this process has one thread.
    done("setgid", unsafe { libc::setgid(NOBODY) })?;
    // SAFETY: as above.
    done("setuid", unsafe { libc::setuid(NOBODY) })
}

/// Becomes root of a new user namespace.
fn enter_user_namespace(outside: u32) -> Outcome {
    // One that has given its user up has no say about its own files in /proc, unless it takes it.
    // SAFETY: the call takes integers.
    done("prctl", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
    // SAFETY: the call takes flags, and this process has one thread.
    done("unshare", unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    let write = |name: &str, text: String| {
        std::fs::write(format!("/proc/self/{name}"), text)
            .map_err(|error| Failure::new(format!("could not write {name}: {error}")))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {outside} 1"))?;
    write("gid_map", format!("0 {outside} 1"))
}

/// Gives up every capability but these. `capset` has no wrapper in the C library.
fn keep_capabilities(keep: &[u32]) -> Outcome {
    const VERSION_3: u32 = 0x2008_0522;

    let mut words = [0u32; 2];
    for capability in keep {
        words[(capability / 32) as usize] |= 1 << (capability % 32);
    }
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable; the low word of each, then the high.
    let data = [words[0], words[0], 0, words[1], words[1], 0];
    // SAFETY: version 3 reads a header of two words and data of six.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    done("capset", result as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_that_are_given_up_are_gone() {
        // Without privilege at the start nothing can be kept, but giving up always works.
        isolated(|| {
            keep_capabilities(&[])?;
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            crate::outcome::holds("none is left", status.contains("CapEff:\t0000000000000000"))
        })
        .unwrap();
    }
}
