//! The calls of 32-bit programs. A 64-bit program makes them by the interrupt that those use, where the kernel serves
//! them at all; elsewhere it ends by a signal.

use std::arch::asm;
use std::thread;
use std::time::Duration;

use crate::outcome::{Failure, Outcome, equal, refused, success, wanted};
use crate::raw::{Answer, Device};
use crate::{Numbering, Subject};

/// `ioctl` among the system calls of 32-bit programs.
const IOCTL: i32 = 54;

fn ioctl(device: &Device, request: u64, argument: u32) -> Answer {
    let result: i32;
    // SAFETY: the call takes integers. The register that the compiler keeps for itself is given back.
    unsafe {
        asm!(
            "push rbx",
            "mov ebx, {fd:e}",
            "int 0x80",
            "pop rbx",
            fd = in(reg) device.raw(),
            inlateout("eax") IOCTL => result,
            in("ecx") request as u32,
            in("edx") argument,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    usize::try_from(result).map_err(|_| -result)
}

pub(crate) fn compat(subject: Subject<'_>) -> Outcome {
    let numbering = subject.numbering;
    let (caller, other) = (subject.open()?, subject.open()?);
    let unknown = ioctl(&caller, 0xe4ff, 0);
    refused("an unknown request", unknown, libc::EINVAL)?;
    wanted("trigger", ioctl(&caller, numbering.trigger(), 0), Ok(0))?;
    let new = success("read", caller.generation())?;
    refused(
        "wait, the caller outdated",
        ioctl(&caller, numbering.wait(), 0),
        libc::EINTR,
    )?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    refused(
        "wait, another outdated",
        ioctl(&caller, numbering.wait(), 100),
        libc::ETIME,
    )?;
    wanted("tracking off", ioctl(&other, numbering.track(), 0), Ok(0))?;
    wanted("wait", ioctl(&caller, numbering.wait(), 100), Ok(0))?;
    wanted("tracking on", ioctl(&other, numbering.track(), 1), Ok(0))?;
    // The longest limit of theirs is 49 days, and no negative number.
    thread::scope(|scope| {
        let acknowledging = scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            other.acknowledge(new)
        });
        let waited = ioctl(&caller, numbering.wait(), u32::MAX);
        wanted("wait with the longest limit", waited, Ok(0))?;
        let acknowledged = acknowledging.join();
        wanted(
            "acknowledgement",
            acknowledged.map_err(|_| Failure::new("a thread panicked"))?,
            Ok(4),
        )
    })?;
    let high = 1 << 31;
    wanted(
        "trigger with a high minimum",
        ioctl(&caller, numbering.trigger(), high),
        Ok(0),
    )?;
    let read = success("read", caller.generation())?;
    equal("the counter", read, high)?;
    wanted("acknowledgement", caller.acknowledge(high), Ok(4))?;
    if numbering == Numbering::Seed {
        let reader = subject.open_with(libc::O_RDONLY)?;
        let tracked = ioctl(&reader, numbering.track(), 1);
        refused("tracking of a read-only file", tracked, libc::EBADF)?;
    }
    Ok(())
}
