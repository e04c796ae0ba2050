//! Who runs which test, where several emulated hosts run those of one plan.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use vm_agent::Entry;

/// The tests that hosts have taken. A test stays with its lane: if a host dies, the next one of the lane runs it.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<BTreeMap<String, Claim>>);

#[derive(Debug, Clone, Copy)]
struct Claim {
    lane: usize,
    /// From 1 on, in the order in which tests were taken.
    number: usize,
}

impl Claims {
    /// Takes a test for a lane. Returns its number; 0 if another lane has it.
    pub(crate) fn take(&self, lane: usize, name: &str) -> usize {
        let mut claims = self.lock();
        let number = claims.len() + 1;
        let claim = claims
            .entry(name.to_owned())
            .or_insert(Claim { lane, number });
        match claim.lane == lane {
            true => claim.number,
            false => 0,
        }
    }

    /// The names of all that were taken.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Claim>> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One lane's part in the claims.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    /// Those of all lanes.
    pub(crate) claims: Arc<Claims>,
    /// The number of this one.
    pub(crate) number: usize,
}

/// Answers what one host asks for in its report.
pub(super) struct Clerk<'a> {
    lane: &'a Lane,
    report: &'a Path,
    /// So much of the report has been read.
    read: u64,
    answers: File,
}

impl<'a> Clerk<'a> {
    /// One that answers into the named pipe `answers`, which the host reads.
    pub(super) fn new(lane: &'a Lane, report: &'a Path, answers: &Path) -> Result<Self> {
        // For reading too, so that it need not wait for the host to open it.
        let answers = File::options()
            .read(true)
            .write(true)
            .open(answers)
            .context("could not open a pipe")?;
        Ok(Self {
            lane,
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
                let number = self.lane.claims.take(self.lane.number, &name);
                let _ = writeln!(self.answers, "{number}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn a_test_stays_with_the_lane_that_took_it() {
        let claims = Claims::default();
        assert_eq!([claims.take(0, "a"), claims.take(1, "b")], [1, 2]);
        assert_eq!([claims.take(1, "a"), claims.take(0, "b")], [0, 0]);
        // The next host of the lane asks again.
        assert_eq!(claims.take(0, "a"), 1);
        assert_eq!(claims.names(), ["a", "b"]);
    }

    #[test]
    fn a_clerk_answers_each_question_once_and_waits_for_the_end_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (report, answers) = (dir.path().join("report"), dir.path().join("answers"));
        super::super::qemu::make_fifo(&answers).unwrap();
        let ask = |name: &str| Entry::Ask(name.into()).to_line().unwrap();
        let lane = Lane {
            claims: Arc::default(),
            number: 0,
        };
        lane.claims.take(1, "c");
        let mut clerk = Clerk::new(&lane, &report, &answers).unwrap();
        let mut heard = BufReader::new(clerk.answers.try_clone().unwrap()).lines();
        clerk.look();
        let (first, second) = (Entry::Alive.to_line().unwrap() + &ask("a"), ask("b"));
        let (begin, end) = second.split_at(5);
        fs::write(&report, first.clone() + begin).unwrap();
        clerk.look();
        clerk.look();
        assert_eq!(heard.next().unwrap().unwrap(), "2");
        fs::write(&report, first + begin + end + &ask("c")).unwrap();
        clerk.look();
        assert_eq!(heard.next().unwrap().unwrap(), "3");
        assert_eq!(heard.next().unwrap().unwrap(), "0");
    }
}
