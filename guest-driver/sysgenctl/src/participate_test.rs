//! Sessions with a stand-in for the device and the program.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use sysgenid::AcknowledgeError;

use super::*;

/// Says what happens, one after the other, and keeps what was done.
struct Script {
    happenings: VecDeque<Happening>,
    seen: RefCell<Vec<String>>,
    generation: Cell<u32>,
    acknowledged: Cell<u32>,
    clone: bool,
    /// The request was over before anybody parked, so that the driver does not say that this is a clone.
    late: bool,
    interrupted: Cell<bool>,
}

impl Source for &mut Script {
    fn next(&mut self, pending: bool, told: Option<u32>) -> Result<Happening, ParticipateError> {
        let state = match (pending, told) {
            (false, None) => return Ok(self.take()),
            state => state,
        };
        self.seen.borrow_mut().push(format!("waits {state:?}"));
        Ok(self.take())
    }

    fn current(&self) -> Result<u32, ParticipateError> {
        Ok(self.generation.get())
    }

    fn unacknowledged(&self) -> Result<Option<u32>, ParticipateError> {
        let generation = self.generation.get();
        Ok((generation != self.acknowledged.get()).then_some(generation))
    }

    fn park(&self) -> Result<Outcome, ParkError> {
        if self.interrupted.take() {
            return Err(ParkError::Interrupted);
        }
        self.seen.borrow_mut().push("parks".into());
        if self.clone || self.late {
            self.generation.set(self.generation.get() + 2);
        }
        match self.clone {
            true => Ok(Outcome::Clone),
            false => Ok(Outcome::Original),
        }
    }

    fn acknowledge(&self, generation: u32) -> Result<(), AcknowledgeError> {
        if generation != self.generation.get() {
            return Err(AcknowledgeError::Stale(generation));
        }
        self.acknowledged.set(generation);
        self.seen
            .borrow_mut()
            .push(format!("acknowledges {generation}"));
        Ok(())
    }
}

impl Script {
    fn new(happenings: impl IntoIterator<Item = Happening>) -> Self {
        Self {
            happenings: happenings.into_iter().collect(),
            seen: RefCell::default(),
            generation: Cell::new(4),
            acknowledged: Cell::new(4),
            clone: false,
            late: false,
            interrupted: Cell::new(false),
        }
    }

    fn take(&mut self) -> Happening {
        let next = self.happenings.pop_front().unwrap_or(Happening::End);
        match next {
            Happening::Moved(generation) => self.generation.set(generation),
            Happening::Over if self.late => self.generation.set(self.generation.get() + 2),
            _ => {}
        }
        next
    }

    /// Runs it; what the program heard after the first line, and what the device saw.
    fn run(&mut self) -> Result<(Vec<String>, Vec<String>), ParticipateError> {
        let mut out = Vec::new();
        Session::new(&mut *self, &mut out).run(true)?;
        let heard = String::from_utf8(out).unwrap();
        let mut heard = heard.lines().map(ToOwned::to_owned);
        assert_eq!(
            heard.next().unwrap(),
            r#"{"event":"ready","generation":4,"parks":true}"#
        );
        Ok((heard.collect(), self.seen.take()))
    }
}

fn says(line: &str) -> Happening {
    Happening::Said(line.to_owned())
}

#[test]
fn the_original_parks_when_its_program_says_so_and_acknowledges_nothing() {
    let mut script = Script::new([Happening::Asked, says("parked 1"), says("adapted 4")]);
    script.interrupted.set(true);
    let (heard, seen) = script.run().unwrap();
    assert_eq!(
        heard,
        [
            r#"{"event":"pending","request":1}"#,
            r#"{"event":"forked","generation":4,"role":"original"}"#,
        ]
    );
    assert_eq!(seen, ["waits (true, None)", "parks"]);
}

#[test]
fn a_clone_acknowledges_when_its_program_has_adapted() {
    let mut script = Script::new([Happening::Asked, says("parked 1"), says("adapted 6")]);
    script.clone = true;
    let (heard, seen) = script.run().unwrap();
    assert_eq!(
        heard[1],
        r#"{"event":"forked","generation":6,"role":"clone"}"#
    );
    assert_eq!(
        seen,
        [
            "waits (true, None)",
            "parks",
            "waits (false, Some(6))",
            "acknowledges 6"
        ]
    );
}

#[test]
fn a_program_that_says_nothing_is_told_that_the_request_is_over() {
    let mut script = Script::new([Happening::Asked, Happening::Over]);
    let (heard, seen) = script.run().unwrap();
    assert_eq!(heard[1], r#"{"event":"called-off","request":1}"#);
    assert_eq!(seen, ["waits (true, None)"]);
}

#[test]
fn an_answer_to_a_request_that_is_over_is_none_to_the_next_one() {
    let late = says("parked 1");
    let mut script = Script::new([Happening::Asked, Happening::Over, Happening::Asked, late]);
    let (heard, seen) = script.run().unwrap();
    assert_eq!(heard[2], r#"{"event":"pending","request":2}"#);
    // Who said so stands still until a line comes.
    assert_eq!(heard[3], r#"{"event":"called-off","request":1}"#);
    assert_eq!(seen, ["waits (true, None)"; 3]);
}

#[test]
fn a_clone_that_parks_when_the_request_is_over_is_no_original() {
    let mut script = Script::new([Happening::Asked, says("parked 1"), says("adapted 6")]);
    script.late = true;
    let (heard, seen) = script.run().unwrap();
    assert_eq!(
        heard[1],
        r#"{"event":"forked","generation":6,"role":"clone"}"#
    );
    assert_eq!(seen.last().unwrap(), "acknowledges 6");
}

#[test]
fn a_clone_that_did_not_park_hears_of_its_generation_first() {
    let mut script = Script::new([Happening::Asked, Happening::Over, says("adapted 6")]);
    script.late = true;
    let (heard, seen) = script.run().unwrap();
    assert_eq!(
        heard[1..],
        [
            r#"{"event":"generation","generation":6}"#,
            r#"{"event":"called-off","request":1}"#,
        ]
    );
    assert_eq!(seen.last().unwrap(), "acknowledges 6");
}

#[test]
fn a_generation_that_was_not_acknowledged_is_told_again_after_a_park() {
    let mut script = Script::new([Happening::Moved(9), Happening::Asked, says("parked 1")]);
    let (heard, _) = script.run().unwrap();
    assert_eq!(
        heard[2],
        r#"{"event":"forked","generation":9,"role":"clone"}"#
    );
}

#[test]
fn a_restore_that_nobody_asked_for_is_told_and_acknowledged() {
    let mut script = Script::new([Happening::Moved(9), says("adapted 9")]);
    let (heard, seen) = script.run().unwrap();
    assert_eq!(heard, [r#"{"event":"generation","generation":9}"#]);
    assert_eq!(seen, ["waits (false, Some(9))", "acknowledges 9"]);
}

#[test]
fn a_generation_that_begins_while_the_program_adapts_needs_an_answer_of_its_own() {
    let mut script = Script::new([
        Happening::Moved(9),
        Happening::Moved(11),
        says("adapted 9"),
        says("adapted 11"),
    ]);
    let (heard, seen) = script.run().unwrap();
    assert_eq!(heard[1], r#"{"event":"generation","generation":11}"#);
    assert_eq!(
        seen,
        [
            "waits (false, Some(9))",
            "waits (false, Some(11))",
            "waits (false, Some(11))",
            "acknowledges 11"
        ]
    );
}

#[test]
fn a_request_that_comes_while_the_program_adapts_is_told() {
    let mut script = Script::new([
        Happening::Moved(9),
        Happening::Asked,
        says("adapted 9"),
        says("parked 1"),
    ]);
    let (_, seen) = script.run().unwrap();
    assert_eq!(
        seen,
        [
            "waits (false, Some(9))",
            "waits (true, Some(9))",
            "acknowledges 9",
            "waits (true, None)",
            "parks"
        ]
    );
}

#[test]
fn what_is_no_answer_is_an_error_that_quotes_it() {
    for line in ["", "parked", "parked x", "parked -1", "done 1"] {
        let error = Script::new([says(line)]).run().unwrap_err();
        assert!(error.to_string().contains(&format!("{line:?}")), "{error}");
    }
}

#[test]
fn lines_are_taken_whole_and_one_by_one() {
    let mut lines = Lines(b"parked 1\nadap".to_vec());
    assert_eq!(lines.take().as_deref(), Some("parked 1"));
    assert_eq!(lines.take(), None);
    lines.0.extend_from_slice(b"ted 2\n\n");
    assert_eq!(lines.take().as_deref(), Some("adapted 2"));
    assert_eq!(lines.take().as_deref(), Some(""));
    assert_eq!(lines.take(), None);
}
