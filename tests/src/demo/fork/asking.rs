//! A client that asks without pause.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use vmgenie_tests::image;
use vmgenie_tests::net::Namespace;

/// What is asked for: the name of the machine, and its two nonces for this answer.
const PATH: &str = "/cgi-bin/nonce.cgi";
/// How long a connection may take, as with other clients: the machine stands still while it is copied.
const PATIENCE: Duration = Duration::from_secs(120);

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Who has given it.
    pub(crate) name: String,
    /// What no other answer may have: what the kernel has drawn for it, and what a generator in user space has.
    pub(crate) nonces: [String; 2],
}

impl Answer {
    fn of(body: &str) -> Option<Self> {
        let words: Vec<&str> = body.split_whitespace().collect();
        match words[..] {
            [name, drawn, generated] => Some(Self {
                name: name.to_owned(),
                nonces: [drawn, generated].map(str::to_owned),
            }),
            _ => None,
        }
    }
}

/// What a client has got.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// All answers.
    pub(crate) answers: Vec<Answer>,
    /// Requests without an answer: why.
    pub(crate) lost: Vec<String>,
    /// How long the slowest answer took.
    pub(crate) longest: Duration,
}

/// Asks a machine once.
pub(crate) fn ask(namespace: &Namespace, address: Ipv4Addr) -> Result<Answer> {
    let body = namespace.try_get_within(address, image::PORT, PATH, PATIENCE)?;
    let text = String::from_utf8_lossy(&body);
    Answer::of(&text).ok_or_else(|| anyhow!("it answered {text:?}"))
}

/// A client that asks one machine, one request after the other, until it is stopped.
pub(crate) struct Client {
    asked: Arc<Mutex<Asked>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Client {
    pub(crate) fn begin(namespace: Arc<Namespace>, address: Ipv4Addr) -> Self {
        let (asked, stop) = (Arc::<Mutex<Asked>>::default(), Arc::<AtomicBool>::default());
        let (tell, end) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = ask(&namespace, address);
                let took = begun.elapsed();
                let mut asked = tell.lock().unwrap_or_else(PoisonError::into_inner);
                asked.longest = asked.longest.max(took);
                match answer {
                    Ok(answer) => asked.answers.push(answer),
                    Err(error) => asked.lost.push(format!("{error:#}")),
                }
            }
        });
        Self {
            asked,
            stop,
            thread,
        }
    }

    /// How many answers there are, and how many requests without one.
    pub(crate) fn count(&self) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.answers.len() + asked.lost.len()
    }

    /// Has the request that is under way be the last; what there was.
    pub(crate) fn finish(self) -> Result<Asked> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("a client panicked"))?;
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(asked.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_name_and_two_nonces_or_is_none() {
        let answer = Answer::of("origin a b\n").unwrap();
        assert_eq!(answer.name, "origin");
        assert_eq!(answer.nonces, ["a", "b"]);
        for damaged in ["", "origin a", "origin a b c"] {
            assert_eq!(Answer::of(damaged), None, "{damaged:?}");
        }
    }
}
