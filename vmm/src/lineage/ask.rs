//! Asking all machines of the registry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmgenie_api::client::Client;
use vmgenie_api::wire::{GenerationInfo, Ready, State};
use vmgenie_devices::vmgenid::MAX_ANCESTORS;

use super::{Lineage, Machine, tree};
use crate::registry::{self, Entry};

/// How long a machine may take to answer one request.
const ASK: Duration = Duration::from_secs(1);
/// How long all of them may take.
const ALL: Duration = Duration::from_secs(4);
/// No generation ID has more bytes, as text.
const MAX_ID: usize = 64;
/// How many are asked at a time.
const AT_A_TIME: usize = 32;

/// Whoever looks at the machines, once or again and again. It remembers those that do not answer for a while, and the names of those that
/// have ended.
#[derive(Debug, Default)]
pub struct Watch {
    /// What each process has told last; by its number and when it was started.
    told: HashMap<(i32, u64), GenerationInfo>,
    /// Who was in a generation.
    names: HashMap<String, String>,
}

impl Watch {
    /// The machines of this user's registry as they are now, within some seconds even if none of them answers.
    pub fn look(&mut self) -> Lineage {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_millis();
        let entries = registry::list();
        self.told.retain(|key, _| {
            let mut living = entries.iter();
            living.any(|entry| (entry.pid, entry.start_ticks) == *key)
        });
        let answers = ask_all(&entries);
        let machines = entries.into_iter().zip(answers);
        let machines = machines.map(|(entry, answer)| self.remembered(entry, answer));
        let mut lineage = tree(u64::try_from(now).unwrap_or(u64::MAX), machines.collect());
        for generation in &mut lineage.generations {
            let id = generation.id.as_ref();
            if generation.machines.is_empty() {
                generation.name = id.and_then(|id| self.names.get(id)).cloned();
            }
        }
        lineage
    }

    fn remembered(&mut self, entry: Entry, answer: Answer) -> Machine {
        let key = (entry.pid, entry.start_ticks);
        if let Some(generation) = &answer.generation {
            self.told.insert(key, generation.clone());
            let name = entry.id.clone();
            self.names.insert(generation.id.clone(), name);
        }
        Machine {
            pid: entry.pid,
            id: entry.id,
            api_socket: entry.api_socket,
            state: answer.state,
            generation: answer.generation.or_else(|| self.told.get(&key).cloned()),
            ready: answer.ready,
            drawn: None,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Answer {
    state: Option<State>,
    generation: Option<GenerationInfo>,
    ready: Option<Ready>,
}

/// What each of them answers, in their order. Threads whose machine is silent are not waited for: they end by themselves.
fn ask_all(entries: &[Entry]) -> Vec<Answer> {
    let deadline = Instant::now() + ALL;
    let (tell, answers) = mpsc::channel();
    let left: Vec<(usize, Entry)> = entries.iter().cloned().enumerate().rev().collect();
    let left = Arc::new(Mutex::new(left));
    for _ in 0..entries.len().min(AT_A_TIME) {
        let (left, tell) = (Arc::clone(&left), tell.clone());
        let next = move || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let asker = move || {
            while let Some((number, entry)) = next() {
                if tell.send((number, ask(&entry))).is_err() {
                    return;
                }
            }
        };
        // Without threads no machine answers.
        let _ = thread::Builder::new().name("ask".into()).spawn(asker);
    }
    drop(tell);
    let mut found = vec![Answer::default(); entries.len()];
    let wait = || deadline.saturating_duration_since(Instant::now());
    while let Ok((number, answer)) = answers.recv_timeout(wait()) {
        found[number] = answer;
    }
    found
}

/// No more than an honest machine tells.
fn bounded(mut told: GenerationInfo) -> Option<GenerationInfo> {
    let too_many = told.ancestors.len().saturating_sub(MAX_ANCESTORS);
    told.ancestors.drain(..too_many);
    let is_one = |id: &String| id.len() <= MAX_ID;
    let are_ids = is_one(&told.id) && told.ancestors.iter().all(is_one);
    are_ids.then_some(told)
}

fn ask(entry: &Entry) -> Answer {
    let mut answer = Answer::default();
    let Some(socket) = &entry.api_socket else {
        return answer;
    };
    let Ok(mut client) = Client::new(socket) else {
        return answer;
    };
    client.set_timeout(Some(ASK));
    // First, as nothing that the machine does holds it up. An older VMM does not have it.
    answer.ready = client.ready().ok();
    answer.state = client.info().ok().map(|info| info.state);
    match answer.state {
        Some(State::Running | State::Paused) => {
            answer.generation = client.generation().ok().and_then(bounded);
        }
        // There is no guest that could be anywhere.
        Some(State::NotStarted) => answer.ready = None,
        None => {}
    }
    answer
}
