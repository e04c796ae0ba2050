//! read, write, poll and the counter.

use sysgenid::{Abi, AcknowledgeError, Options};

use crate::outcome::{Failure, Outcome, equal, holds, refused, success, wanted};
use crate::raw::errno;
use crate::{Numbering, Subject};

const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;

pub(crate) fn read_write(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let current = subject.current(&device)?;
    let mut buffer = [0; 64];
    wanted("read of 0 bytes", device.read(&mut []), Ok(0))?;
    for len in 1..4 {
        refused(
            "read of 1 to 3 bytes",
            device.read(&mut buffer[..len]),
            libc::EINVAL,
        )?;
    }
    refused("read, up to date", device.read(&mut buffer), libc::EAGAIN)?;
    for len in [0, 1, 3, 5, 8, 64] {
        let what = format!("write of {len} bytes");
        let wrong_size = subject.numbering.wrong_size();
        refused(&what, device.write(&buffer[..len]), wrong_size)?;
    }
    for stale in [current.wrapping_add(1), current.wrapping_sub(1)] {
        refused(
            "write of another generation",
            device.acknowledge(stale),
            libc::EINVAL,
        )?;
    }
    refused("write from nowhere", device.bad_address(true), libc::EFAULT)?;
    wanted("write, up to date", device.acknowledge(current), Ok(4))?;
    let new = subject.next(&device)?;
    refused("read to nowhere", device.bad_address(false), libc::EFAULT)?;
    wanted("read of 64 bytes", device.read(&mut buffer), Ok(4))?;
    equal("what was read", &buffer[..4], &new.to_ne_bytes()[..])?;
    wanted("read of 0 bytes, outdated", device.read(&mut []), Ok(0))?;
    refused(
        "read of 3 bytes, outdated",
        device.read(&mut buffer[..3]),
        libc::EINVAL,
    )?;
    wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
    refused("read after it", device.generation(), libc::EAGAIN)?;
    directions(subject)
}

/// A file that was opened for one direction.
fn directions(subject: Subject<'_>) -> Outcome {
    let reader = subject.open_with(libc::O_RDONLY | libc::O_NONBLOCK)?;
    refused("write, read-only", reader.acknowledge(0), libc::EBADF)?;
    let writer = subject.open_with(libc::O_WRONLY)?;
    refused("read, write-only", writer.generation(), libc::EBADF)
}

pub(crate) fn generations(subject: Subject<'_>) -> Outcome {
    let (first, second) = (subject.open()?, subject.open()?);
    let reader = subject.open_with(libc::O_RDONLY | libc::O_NONBLOCK)?;
    let start = subject.current(&first)?;
    wanted("poll, up to date", first.poll(0), Ok(0))?;
    let new = subject.next(&first)?;
    equal("the counter after a trigger", new, start.wrapping_add(1))?;
    for device in [&first, &second, &reader] {
        wanted("poll, outdated", device.poll(0), Ok(READABLE))?;
        wanted("read", device.generation(), Ok(new))?;
        wanted("read again", device.generation(), Ok(new))?;
    }
    refused(
        "acknowledgement of the old one",
        first.acknowledge(start),
        libc::EINVAL,
    )?;
    wanted("poll after that", first.poll(0), Ok(READABLE))?;
    wanted("acknowledgement", first.acknowledge(new), Ok(4))?;
    wanted("poll after it", first.poll(0), Ok(0))?;
    wanted("poll of the other file", second.poll(0), Ok(READABLE))?;
    let late = subject.open()?;
    refused(
        "read of a file opened since",
        late.generation(),
        libc::EAGAIN,
    )?;

    let far = u64::from(new) + 10;
    wanted("trigger with a minimum", first.trigger(far), Ok(0))?;
    wanted("read", first.generation().map(u64::from), Ok(far))?;
    wanted("trigger with a past minimum", first.trigger(1), Ok(0))?;
    wanted("read", first.generation().map(u64::from), Ok(far + 1))?;
    if subject.numbering == Numbering::Seed {
        wanted("FORCE_GEN_UPDATE", first.ioctl(0xe402, 0), Ok(0))?;
        wanted("read", first.generation().map(u64::from), Ok(far + 2))?;
    }
    let last = success("read", first.generation())?;
    wanted(
        "one acknowledgement for all of them",
        first.acknowledge(last),
        Ok(4),
    )?;
    wanted("poll after it", first.poll(0), Ok(0))
}

pub(crate) fn unknown_requests(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let free = match subject.numbering {
        Numbering::Seed => 0xe40d,
        Numbering::Deployed => 0xe404,
    };
    for request in [
        free,
        0xe406,
        0xe409,
        0xe40c,
        0xe400,
        0xe4ff,
        0xe301,
        0x4004_e401,
    ] {
        let what = format!("ioctl {request:#x}");
        refused(&what, device.ioctl(request, 0), libc::EINVAL)?;
    }
    Ok(())
}

pub(crate) fn library(subject: Subject<'_>) -> Outcome {
    let failed = |what: &'static str| {
        move |error: &dyn std::error::Error| {
            Failure::new(format!("{what}: {error}: {:?}", error.source()))
        }
    };
    let watcher = Options::new()
        .path(subject.path)
        .open()
        .map_err(|error| failed("open")(&error))?;
    let should = match subject.numbering {
        Numbering::Seed => Abi::Seed,
        Numbering::Deployed => Abi::Deployed,
    };
    equal("the numbering that was found out", watcher.abi(), should)?;
    let before = watcher
        .current()
        .map_err(|error| failed("current")(&error))?;
    let next = watcher
        .try_next()
        .map_err(|error| failed("try_next")(&error))?;
    equal("try_next, up to date", next, None)?;
    watcher
        .trigger(0)
        .map_err(|error| failed("trigger")(&error))?;
    holds(
        "changed() after a trigger",
        watcher.counter().changed(before),
    )?;
    let new = watcher.wait().map_err(|error| failed("wait")(&error))?;
    equal("wait", new, before.wrapping_add(1))?;
    let stale = watcher.acknowledge(before);
    holds(
        "a stale acknowledgement is told",
        matches!(stale, Err(AcknowledgeError::Stale(_))),
    )?;
    let outdated = watcher.wait_for_watchers(None);
    let told = matches!(outdated, Err(sysgenid::WatchersError::Outdated));
    holds("an outdated waiter is told", told)?;
    watcher
        .acknowledge(new)
        .map_err(|error| failed("acknowledge")(&error))?;
    watcher
        .wait_for_watchers(None)
        .map_err(|error| failed("wait_for_watchers")(&error))
}

pub(crate) fn epoll(subject: Subject<'_>) -> Outcome {
    for flags in [libc::EPOLLIN, libc::EPOLLIN | libc::EPOLLET] {
        let device = subject.open()?;
        // SAFETY: the call takes no pointer. The descriptor is closed by the process's end.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let mut event = libc::epoll_event {
            events: flags as u32,
            u64: 7,
        };
        // SAFETY: the event outlives the call.
        if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, device.raw(), &mut event) } < 0 {
            return Err(Failure::new(format!("epoll_ctl: errno {}", errno())));
        }
        let mut pending = |milliseconds| {
            // SAFETY: there is room for the one event that is asked for.
            unsafe { libc::epoll_wait(epoll, &mut event, 1, milliseconds) }
        };
        equal("events, up to date", pending(0), 0)?;
        let trigger = subject.open()?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                trigger.trigger(0)
            });
            equal("events after a trigger", pending(5000), 1)
        })?;
        let again = i32::from(flags & libc::EPOLLET == 0);
        equal("events, asked again", pending(0), again)?;
        let new = success("read", device.generation())?;
        wanted("acknowledgement", device.acknowledge(new), Ok(4))?;
        equal("events after it", pending(0), 0)?;
    }
    Ok(())
}

pub(crate) fn overflow(subject: Subject<'_>) -> Outcome {
    let device = subject.open()?;
    let most = u64::from(u32::MAX);
    wanted("trigger with 2^32-1", device.trigger(most), Ok(0))?;
    wanted("read", device.generation(), Ok(u32::MAX))?;
    for min in [0, 1, most] {
        refused("trigger at 2^32-1", device.trigger(min), libc::EOVERFLOW)?;
    }
    wanted("read", device.generation(), Ok(u32::MAX))?;
    wanted("acknowledgement", device.acknowledge(u32::MAX), Ok(4))?;
    let mapping = device.map(4, libc::PROT_READ, libc::MAP_SHARED, 0);
    equal(
        "the mapped counter",
        success("mmap", mapping)?.load(),
        u32::MAX,
    )
}
