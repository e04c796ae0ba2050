//! Console input on its way to the guest: from standard input, and from those who have attached to the console.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::command::{CommandResult, Reply};
use crate::terminal::{Escape, EscapeFilter};

/// Standard input on its way to the guest's serial port.
pub(crate) struct ConsoleInput {
    filter: Option<EscapeFilter>,
    /// Bytes that the guest has not taken yet.
    pub(crate) waiting: Vec<u8>,
    /// Registered with epoll at this moment.
    pub(crate) registered: bool,
    /// Cannot be registered with epoll: a regular file.
    pub(crate) pollable: bool,
    pub(crate) ended: bool,
}

impl ConsoleInput {
    /// Standard input; with the escape Ctrl-A if it is a terminal.
    pub(crate) fn stdin() -> Self {
        Self {
            filter: io::stdin().is_terminal().then(EscapeFilter::quitting),
            waiting: Vec::new(),
            registered: false,
            pollable: true,
            ended: false,
        }
    }
}

/// What one look at standard input has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing this time.
    None,
    /// Bytes for the guest.
    Some,
    /// There will be no more.
    Ended,
    /// The user wants to quit.
    Quit,
}

/// Reads once.
pub(crate) fn read_some(input: &mut ConsoleInput) -> io::Result<Input> {
    let mut buffer = [0; 64];
    // Not through the standard library's buffer, into which bytes would vanish from epoll's sight.
    let len = match rustix::io::read(io::stdin(), &mut buffer) {
        Err(Errno::INTR | Errno::AGAIN) => return Ok(Input::None),
        read => read?,
    };
    if len == 0 {
        input.ended = true;
        return Ok(Input::Ended);
    }
    let Some(filter) = &mut input.filter else {
        input.waiting.extend_from_slice(&buffer[..len]);
        return Ok(Input::Some);
    };
    Ok(match filter.feed(&buffer[..len], &mut input.waiting) {
        Escape::Leave => Input::Quit,
        Escape::Continue => Input::Some,
    })
}

/// What those type who have attached to the console. Each of them has one piece here at most, because the next one comes when this
/// one is answered, and the piece of one who has gone goes when somebody else types.
#[derive(Debug, Default)]
pub(crate) struct AttachedInput(VecDeque<Typed>);

#[derive(Debug)]
struct Typed {
    bytes: Vec<u8>,
    /// How many of them the guest has taken.
    taken: usize,
    answer: oneshot::Sender<CommandResult>,
}

impl AttachedInput {
    /// Has `bytes` wait for the guest, and then `answer` be sent.
    pub(crate) fn push(&mut self, bytes: Vec<u8>, answer: oneshot::Sender<CommandResult>) {
        // A loop of attaching, typing and leaving would fill the memory while the guest takes nothing.
        self.0.retain(|typed| !typed.answer.is_closed());
        self.0.push_back(Typed {
            bytes,
            taken: 0,
            answer,
        });
    }

    /// Gives the guest as much as it takes; `guest` tells how many bytes it took, none if it could not be asked, which is false.
    pub(crate) fn give(&mut self, guest: impl Fn(&[u8]) -> Option<usize>) -> bool {
        while let Some(typed) = self.0.front_mut() {
            let Some(taken) = guest(&typed.bytes[typed.taken..]) else {
                return false;
            };
            typed.taken += taken;
            if typed.taken < typed.bytes.len() {
                return true;
            }
            if let Some(typed) = self.0.pop_front() {
                // A client that has gone needs no answer.
                let _ = typed.answer.send(Ok(Reply::Done));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn what_is_typed_is_answered_when_the_guest_has_taken_it_all() {
        let mut attached = AttachedInput::default();
        let (answers, mut answered): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
        for (text, answer) in ["abc", "de"].into_iter().zip(answers) {
            attached.push(text.into(), answer);
        }
        let seen = RefCell::new(Vec::new());
        let room = RefCell::new(2);
        let guest = |bytes: &[u8]| {
            let taken = bytes.len().min(*room.borrow());
            seen.borrow_mut().extend_from_slice(&bytes[..taken]);
            *room.borrow_mut() -= taken;
            Some(taken)
        };
        assert!(!attached.give(|_| None), "the guest is busy");
        assert!(attached.give(guest));
        assert!(answered[0].try_recv().is_err());
        *room.borrow_mut() = 2;
        assert!(attached.give(guest));
        assert!(answered[0].try_recv().is_ok() && answered[1].try_recv().is_err());
        *room.borrow_mut() = 9;
        assert!(attached.give(guest));
        assert!(answered[1].try_recv().is_ok());
        assert_eq!(*seen.borrow(), b"abcde");
    }

    #[test]
    fn what_those_typed_who_have_gone_does_not_pile_up() {
        let mut attached = AttachedInput::default();
        let (stays, _waits) = oneshot::channel();
        attached.push(b"stays".to_vec(), stays);
        for _ in 0..1000 {
            let (goes, gone) = oneshot::channel();
            attached.push(b"goes".to_vec(), goes);
            drop(gone);
        }
        assert_eq!(attached.0.len(), 2);
    }
}
