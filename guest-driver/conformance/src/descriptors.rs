//! What may be done with a descriptor besides the device's own calls: positions, copies, other processes.

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::Subject;
use crate::observers::Info;
use crate::outcome::{Failure, Outcome, equal, refused, success, wanted};
use crate::process::Child;
use crate::raw::{Answer, Device, errno};

pub(crate) fn descriptors(subject: Subject<'_>) -> Outcome {
    positions(subject)?;
    copies(subject)?;
    in_flight(subject)
}

/// What a call returned, or its `errno`.
fn answer(result: isize) -> Answer {
    usize::try_from(result).map_err(|_| errno())
}

/// The counter is at no position, and a read says for itself whether it may block.
fn positions(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    // SAFETY: the call takes integers.
    let sought = answer(unsafe { libc::lseek(device.raw(), 0, libc::SEEK_SET) } as isize);
    refused("lseek", sought, libc::ESPIPE)?;
    let new = subject.next(&device)?;
    let mut bytes = [0; 4];
    // SAFETY: the buffer is writable for its whole length.
    let read = answer(unsafe { libc::pread(device.raw(), bytes.as_mut_ptr().cast(), 4, 100) });
    wanted("pread", read, Ok(4))?;
    equal("what was read", u32::from_ne_bytes(bytes), new)?;

    let (mut first, mut second) = ([0u8; 1], [0u8; 3]);
    let parts = [
        libc::iovec {
            iov_base: first.as_mut_ptr().cast(),
            iov_len: 1,
        },
        libc::iovec {
            iov_base: second.as_mut_ptr().cast(),
            iov_len: 3,
        },
    ];
    // SAFETY: both parts are writable for their whole length.
    let read = answer(unsafe { libc::readv(device.raw(), parts.as_ptr(), 2) });
    wanted("readv", read, Ok(4))?;
    let read = u32::from_ne_bytes([first[0], second[0], second[1], second[2]]);
    equal("what was read in parts", read, new)?;
    // The kernel refuses what the driver does not promise.
    // SAFETY: as above.
    let read =
        answer(unsafe { libc::preadv2(device.raw(), parts.as_ptr(), 2, -1, libc::RWF_NOWAIT) });
    refused("preadv2 with RWF_NOWAIT", read, libc::EOPNOTSUPP)?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4)).map(drop)
}

/// Copies of a descriptor are one watcher, in whatever process.
fn copies(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let alone = Info::of(&device)?.watchers;
    let copy = device
        .copy()
        .map_err(|errno| Failure::new(format!("dup: errno {errno}")))?;
    let new = subject.next(&device)?;
    wanted("read of the copy", copy.generation(), Ok(new))?;
    wanted("acknowledgement by the copy", copy.acknowledge(new), Ok(4))?;
    refused("read after it", device.generation(), libc::EAGAIN)?;
    equal("watchers with a copy", Info::of(&device)?.watchers, alone)?;
    drop(device);
    equal(
        "watchers when one is closed",
        Info::of(&copy)?.watchers,
        alone,
    )?;

    let new = subject.next(&copy)?;
    Child::spawn(|| {
        wanted("acknowledgement by a child", copy.acknowledge(new), Ok(4))?;
        equal("watchers with a child", Info::of(&copy)?.watchers, alone)
    })?
    .join()?;
    refused("read after it", copy.generation(), libc::EAGAIN)?;
    wanted("wait after it", copy.wait(1000), Ok(0)).map(drop)
}

/// A file in a socket's queue is a watcher like any, and goes with the queue.
fn in_flight(subject: Subject<'_>) -> Outcome {
    let caller = subject.open()?;
    let (near, far) = socket_pair()?;
    send(&near, subject.open()?)?;
    let new = subject.next(&caller)?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    refused("wait, one is in flight", caller.wait(100), libc::ETIME)?;
    let received = receive(&far, subject)?;
    wanted("read of what was sent", received.generation(), Ok(new))?;
    wanted("acknowledgement", received.acknowledge(new), Ok(4))?;
    wanted("wait after it", caller.wait(0), Ok(0))?;

    send(&near, received)?;
    let new = subject.next(&caller)?;
    wanted("acknowledgement", caller.acknowledge(new), Ok(4))?;
    refused("wait, one is in flight", caller.wait(100), libc::ETIME)?;
    drop((near, far));
    wanted("wait when the queue is gone", caller.wait(5000), Ok(0)).map(drop)
}

fn socket_pair() -> Outcome<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    // SAFETY: there is room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) };
    success("socketpair", answer(made as isize))?;
    // SAFETY: the descriptors were just made and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
}

/// Room for one descriptor beside a message, aligned as its header has to be.
type Control = [u64; 4];

/// Calls `what` with a message of one byte and room for one descriptor.
fn with_message(what: impl FnOnce(&mut libc::msghdr) -> isize) -> Answer {
    let (mut byte, mut control): ([u8; 1], Control) = ([0], [0; 4]);
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: a message of zeros is a valid one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the macro computes with a number.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as usize;
    answer(what(&mut message))
}

/// Sends a descriptor and closes it here.
fn send(socket: &OwnedFd, device: Device) -> Outcome {
    let sent = with_message(|message| {
        // SAFETY: the message has room for one header with one descriptor; both outlive the call.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), device.raw());
            libc::sendmsg(socket.as_raw_fd(), message, 0)
        }
    });
    wanted("sendmsg", sent, Ok(1))
}

fn receive(socket: &OwnedFd, subject: Subject<'_>) -> Outcome<Device> {
    let mut fd = -1;
    let received = with_message(|message| {
        // SAFETY: the message has room for one byte, and for one header with one descriptor.
        unsafe {
            let length = libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC);
            let header = libc::CMSG_FIRSTHDR(message);
            if length > 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
                fd = ptr::read_unaligned(libc::CMSG_DATA(header).cast());
            }
            length
        }
    });
    wanted("recvmsg", received, Ok(1))?;
    if fd < 0 {
        return Err(Failure::new("no descriptor came"));
    }
    // SAFETY: the descriptor was just received and nobody else has it.
    Ok(Device::from_fd(
        unsafe { OwnedFd::from_raw_fd(fd) },
        subject.numbering,
    ))
}
