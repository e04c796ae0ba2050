//! Agents, and the watchers that a host waits for: the privileged ones.

use std::thread;
use std::time::Duration;

use crate::Subject;
use crate::observers::Info;
use crate::outcome::{Outcome, equal, refused, success, wanted};
use crate::privileges::become_nobody;
use crate::process::{Child, isolated};

pub(crate) fn ready(subject: Subject<'_>) -> Outcome {
    let agent = subject.open()?;
    let watcher = subject.open()?;
    let new = subject.next(&agent)?;
    let info = Info::of(&agent)?;
    equal("the agent is required", info.required, 1)?;
    equal("outdated required watchers", info.required_watchers, 2)?;
    equal("agents at first", info.ready_agents, 0)?;
    refused("an old one", agent.ready(u64::from(new) - 1), libc::EINVAL)?;
    refused("a later one", agent.ready(u64::from(new) + 1), libc::EINVAL)?;
    refused("no u32", agent.ready(1 << 32), libc::EINVAL)?;
    for _ in 0..2 {
        wanted("ready", agent.ready(new.into()), Ok(0))?;
        equal("agents", Info::of(&agent)?.ready_agents, 1)?;
    }
    // It is no acknowledgement.
    equal("it is outdated", Info::of(&agent)?.outdated, 1)?;
    wanted("acknowledgement", agent.acknowledge(new), Ok(4))?;
    equal("the other one", Info::of(&agent)?.required_watchers, 1)?;
    // Who goes without an acknowledgement has not adapted, until an agent says that all is done.
    drop(watcher);
    let info = Info::of(&agent)?;
    equal("nobody is outdated", info.outdated_watchers, 0)?;
    equal("one is missing", info.required_watchers, 1)?;
    wanted("wait", agent.wait(1000), Ok(0))?;
    wanted("ready again", agent.ready(new.into()), Ok(0))?;
    equal("none is missing", Info::of(&agent)?.required_watchers, 0)?;
    // One that has finished and gone is counted, and so is its successor, once.
    let other = subject.open()?;
    wanted("another agent", other.ready(new.into()), Ok(0))?;
    equal("two agents", Info::of(&agent)?.ready_agents, 2)?;
    drop(other);
    let successor = subject.open()?;
    wanted("its successor", successor.ready(new.into()), Ok(0))?;
    equal("two agents still", Info::of(&agent)?.ready_agents, 2)?;
    subject.next(&agent)?;
    equal("in the next one", Info::of(&agent)?.ready_agents, 0)?;
    isolated(|| {
        become_nobody()?;
        let nobody = subject.open()?;
        let info = Info::of(&nobody)?;
        equal("nobody is required", (info.tracked, info.required), (1, 0))?;
        refused(
            "nobody's word",
            nobody.ready(info.generation.into()),
            libc::EACCES,
        )
    })
}

/// A process that is only stopped and goes on notices nothing in a wait without limit.
pub(crate) fn stopped(subject: Subject<'_>) -> Outcome {
    const PAUSE: Duration = Duration::from_millis(200);

    let idle = subject.open()?;
    let child = Child::spawn(|| {
        let own = subject.open()?;
        while own
            .poll(10_000)
            .is_ok_and(|events| events & libc::POLLIN == 0)
        {}
        let new = success("read", own.generation())?;
        wanted("acknowledgement", own.acknowledge(new), Ok(4))?;
        wanted("a wait that is stopped and continued", own.wait(0), Ok(0))
    })?;
    thread::sleep(PAUSE);
    let new = subject.next(&idle)?;
    for signal in [libc::SIGSTOP, libc::SIGCONT] {
        thread::sleep(PAUSE);
        child.signal(signal);
    }
    thread::sleep(PAUSE);
    wanted("acknowledgement", idle.acknowledge(new), Ok(4))?;
    child.join()
}

/// For a machine that is restored meanwhile: a tracked watcher without privileges that does nothing.
pub(crate) fn idle(subject: Subject<'_>) -> Outcome {
    become_nobody()?;
    let _watcher = subject.open()?;
    println!("ready");
    loop {
        thread::sleep(Duration::from_secs(1000));
    }
}
