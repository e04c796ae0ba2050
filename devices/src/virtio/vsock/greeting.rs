//! What a program on the host says first: `CONNECT <port>\n`, as Firecracker has it.

use std::io::{self, ErrorKind};

use super::host::Stream;

/// The longest line, with its end.
const MAX_LEN: usize = 32;

/// What has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// Not a whole line yet.
    Partial,
    /// The guest's port. What follows the line is still in the stream.
    Port(u32),
    /// The host's program has gone, or speaks another language.
    Refused,
}

/// Takes the line out of the stream, when it is there as a whole.
pub(super) fn read_greeting<S: Stream>(stream: &mut S) -> Greeting {
    let mut line = [0; MAX_LEN];
    let len = match stream.peek(&mut line) {
        Ok(0) => return Greeting::Refused,
        Ok(len) => len.min(MAX_LEN),
        Err(error) if is_transient(&error) => return Greeting::Partial,
        Err(_) => return Greeting::Refused,
    };
    match line[..len].iter().position(|byte| *byte == b'\n') {
        None if len < MAX_LEN => Greeting::Partial,
        None => Greeting::Refused,
        Some(end) => match (stream.read(&mut line[..=end]), parse(&line[..end])) {
            (Ok(read), Some(port)) if read == end + 1 => Greeting::Port(port),
            _ => Greeting::Refused,
        },
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    let complete = words.next().is_none();
    // Firecracker takes any case.
    (complete && command.eq_ignore_ascii_case("connect"))
        .then(|| port.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_has_the_command_and_a_port() {
        assert_eq!(parse(b"CONNECT 52"), Some(52));
        assert_eq!(parse(b"connect  4294967295\r"), Some(u32::MAX));
        for wrong in [
            &b"CONNECT"[..],
            b"CONNECT 4294967296",
            b"CONNECT -1",
            b"CONNECT 1 2",
            b"CONNECT1",
            b"\xff\xff 1",
            b"",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
