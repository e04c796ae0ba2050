//! Who runs which test, where several emulated hosts run those of one plan.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use vm_agent::Entry;

/// The tests that a host has taken.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// How many were ever taken: the number of the next one is one more.
    count: usize,
    numbers: BTreeMap<String, usize>,
}

impl Claims {
    /// Takes a test. Returns its number, from 1 on; 0 is a test that another host has.
    fn take(&self, name: &str) -> usize {
        let mut taken = self.lock();
        if taken.numbers.contains_key(name) {
            return 0;
        }
        taken.count += 1;
        let number = taken.count;
        taken.numbers.insert(name.to_owned(), number);
        number
    }

    /// Gives back a test that has not ended.
    pub(crate) fn give_back(&self, name: &str) {
        let mut taken = self.lock();
        if taken.numbers.remove(name).is_some() {
            taken.count -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers what one host asks for in its report.
pub(super) struct Clerk<'a> {
    claims: &'a Claims,
    report: &'a Path,
    /// So much of the report has been read.
    read: u64,
    answers: File,
}

impl<'a> Clerk<'a> {
    /// One that answers into the named pipe `answers`, which the host reads.
    pub(super) fn new(claims: &'a Claims, report: &'a Path, answers: &Path) -> Result<Self> {
        // For reading too, so that it need not wait for the host to open it.
        let answers = File::options()
            .read(true)
            .write(true)
            .open(answers)
            .context("could not open a pipe")?;
        Ok(Self {
            claims,
            report,
            read: 0,
            answers,
        })
    }

    /// Answers the questions that are new since the last time.
    pub(super) fn look(&mut self) {
        if fs::metadata(self.report).map_or(0, |it| it.len()) <= self.read {
            return;
        }
        let mut text = Vec::new();
        let read = File::open(self.report).and_then(|mut report| {
            report.seek(SeekFrom::Start(self.read))?;
            report.read_to_end(&mut text)
        });
        let Some(whole) = read.ok().and(text.iter().rposition(|byte| *byte == b'\n')) else {
            return;
        };
        self.read += whole as u64 + 1;
        for line in text[..whole].split(|byte| *byte == b'\n') {
            if let Ok(Entry::Ask(name)) = serde_json::from_slice(line) {
                // A host that is gone reads nothing, which its end tells.
                let _ = writeln!(self.answers, "{}", self.claims.take(&name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn a_test_is_taken_once_until_it_is_given_back() {
        let claims = Claims::default();
        assert_eq!([claims.take("a"), claims.take("b")], [1, 2]);
        assert_eq!(claims.take("a"), 0);
        claims.give_back("a");
        claims.give_back("never taken");
        assert_eq!(claims.take("a"), 2);
    }

    #[test]
    fn a_clerk_answers_each_question_once_and_waits_for_the_end_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (report, answers) = (dir.path().join("report"), dir.path().join("answers"));
        super::super::qemu::make_fifo(&answers).unwrap();
        let (claims, ask) = (Claims::default(), |name: &str| {
            Entry::Ask(name.into()).to_line().unwrap()
        });
        let mut clerk = Clerk::new(&claims, &report, &answers).unwrap();
        let mut heard = BufReader::new(clerk.answers.try_clone().unwrap()).lines();
        clerk.look();
        let (first, second) = (Entry::Alive.to_line().unwrap() + &ask("a"), ask("b"));
        let (begin, end) = second.split_at(5);
        fs::write(&report, first.clone() + begin).unwrap();
        clerk.look();
        clerk.look();
        assert_eq!(heard.next().unwrap().unwrap(), "1");
        fs::write(&report, first + begin + end + &ask("a")).unwrap();
        clerk.look();
        assert_eq!(heard.next().unwrap().unwrap(), "2");
        assert_eq!(heard.next().unwrap().unwrap(), "0");
    }
}
