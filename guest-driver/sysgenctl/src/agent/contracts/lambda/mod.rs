//! The runtime API of AWS Lambda, as far as SnapStart needs it. A runtime that has done what it does before a
//! snapshot waits in `GET .../restore/next`. In a clone that call returns, and the runtime's next request for an
//! event says that it has adapted.

#[cfg(test)]
mod clone_test;
mod events;
mod exchange;
mod fault;
#[cfg(test)]
mod lambda_test;
mod runtime;
mod server;
mod state;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Contract, ContractError, Turn};
use crate::agent::cycle::Resumed;
use crate::contract_args::{LambdaArgs, LambdaOriginal};
use state::{Shared, State};

/// The agent's side of it. The server is a thread of its own.
pub(super) struct Lambda {
    address: SocketAddr,
    original: LambdaOriginal,
    /// There once this machine's runtime was let go: the next agent has to know it. Lost at a reboot.
    mark: PathBuf,
    shared: Arc<Shared>,
}

impl Lambda {
    /// Serves at `address`; `run` is where the mark is kept.
    ///
    /// # Errors
    /// When nothing can listen there, or a thread cannot be started.
    pub(super) fn start(address: SocketAddr, args: &LambdaArgs, run: &Path) -> io::Result<Self> {
        let mark = run.join("lambda-restored");
        let shared = Arc::new(Shared::default());
        let left = fs::read_to_string(&mark).ok();
        shared.change(|state| {
            state.released = left.is_some();
            state.restored = left.and_then(|left| left.parse().ok());
            state.generation = state.restored;
        });
        let address = server::start(address, Arc::clone(&shared), args.lambda_timeout)?;
        Ok(Self {
            address,
            original: args.lambda_original,
            mark,
            shared,
        })
    }

    /// Lets the runtime that waits go on, and every one that comes to wait.
    fn release(&self, new: u32) -> Result<(), ContractError> {
        let directory = self.mark.parent().unwrap_or(Path::new("/"));
        let released = self.shared.change(|state| {
            state.generation = Some(new);
            // The mark names the generation of a runtime that was let go, if there was one.
            let waits = state.waiting.as_ref().map(|_| new);
            let restored = waits.or(state.restored);
            let text = restored.map_or_else(String::new, |generation| generation.to_string());
            fs::create_dir_all(directory)?;
            fs::write(&self.mark, text)?;
            state.released = true;
            if let Some(runtime) = state.waiting.take() {
                state.let_go(runtime);
                state.restore = None;
            }
            Ok(())
        });
        released.map_err(|error: io::Error| {
            let mark = self.mark.display();
            ContractError::Failed(format!("could not leave the mark {mark}: {error}"))
        })
    }
}

impl Contract for Lambda {
    fn name(&self) -> &'static str {
        "lambda"
    }

    fn before(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        let hung = format!(
            "no runtime waits in restore/next; start one with AWS_LAMBDA_RUNTIME_API={} and \
             AWS_LAMBDA_INITIALIZATION_TYPE=snap-start",
            self.address
        );
        turn.wait(&hung, |slice| self.shared.wait(slice, quiesced))?
            .map_err(ContractError::Failed)
    }

    fn after(&self, outcome: Resumed, turn: &Turn<'_>) -> Result<(), ContractError> {
        match (outcome, self.original) {
            // It goes on waiting: for the next snapshot.
            (Resumed::CalledOff, _) | (Resumed::Original, LambdaOriginal::Wait) => {
                self.shared.change(|state| state.missed = false);
                return Ok(());
            }
            (Resumed::Clone, _) | (Resumed::Original, LambdaOriginal::Return) => {
                self.release(turn.new)?;
            }
        }
        let hung = self.shared.change(|state| match &state.adapting {
            Some(runtime) => format!("{runtime} was let go, but has not asked for an event since"),
            None => "a runtime waited before the snapshot, but none has come since".into(),
        });
        turn.wait(&hung, |slice| self.shared.wait(slice, adapted))?
            .map_err(ContractError::Failed)
    }
}

/// Whether the runtime is ready for a snapshot, as soon as that is known.
fn quiesced(state: &mut State) -> Option<Result<(), String>> {
    if state.released {
        let text =
            "the runtime was restored already, and its contract has no way to ask it once more";
        return Some(Err(text.into()));
    }
    if state.waiting.is_some() {
        state.missed = true;
        return Some(Ok(()));
    }
    if let Some(fault) = state.init.take() {
        return Some(Err(format!("the runtime failed before it waited: {fault}")));
    }
    let text = "a runtime serves that was not asked to wait in restore/next; start it with \
                AWS_LAMBDA_INITIALIZATION_TYPE=snap-start";
    (state.pollers > 0).then(|| Err(text.into()))
}

/// Whether the runtime has adapted, as soon as that is known. Without any there is nobody to wait for.
fn adapted(state: &mut State) -> Option<Result<(), String>> {
    if let Some(before) = state
        .restored
        .filter(|_| state.restored != state.generation)
    {
        return Some(Err(format!(
            "the runtime was restored in generation {before}, and its contract has no way to ask it \
             once more: start it anew"
        )));
    }
    if let Some(fault) = state.restore.take() {
        return Some(Err(format!(
            "the runtime failed after the restore: {fault}"
        )));
    }
    let Some(runtime) = &state.adapting else {
        return (!state.missed).then_some(Ok(()));
    };
    let ended = || Err(format!("{runtime} has ended before it asked for an event"));
    runtime.has_ended().then(ended)
}
