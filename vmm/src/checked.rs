//! Between what a client says and what is used inside: how it is checked, and what may be wrong.
//!
//! Whatever a client may get wrong is a [`WireError`], whose message becomes the `fault_message`.

use std::path::{Path, PathBuf};

use thiserror::Error;
use vmgenie_api::wire::{
    MAX_QUIESCE_MS, MAX_SELF_SNAPSHOTS, MAX_WAIT_MS, RateLimiter, TokenBucket,
};
use vmgenie_machine::config::ConfigError;

/// What a client has sent, checked and made what is used inside.
pub trait Checked<T> {
    /// Checks and converts it.
    ///
    /// # Errors
    /// It asks for what cannot be.
    fn checked(self) -> Result<T, WireError>;
}

/// What is used on one side, as it is on the other.
pub trait Convert<T> {
    /// Converts it.
    fn convert(self) -> T;
}

/// A body that is well-formed JSON of the right shape and still asks for what cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// A number or a command line is out of range.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// `track_dirty_pages` or `enable_diff_snapshots` is true.
    #[error("{0} is not supported, every snapshot is a full one: leave it out or set it to false")]
    DirtyPages(&'static str),
    /// `huge_pages` of a load asks for some.
    #[error(
        "huge pages are not supported for a snapshot, whose memory is mapped from its file: leave huge_pages out or set it to \"None\""
    )]
    HugePages,
    /// `cpu_template` names a template.
    #[error("CPU templates are not supported: leave cpu_template out or set it to \"None\"")]
    CpuTemplate,
    /// A PATCH that changes nothing.
    #[error("the body changes nothing: give vcpu_count, mem_size_mib or both")]
    EmptyPatch,
    /// A path is the empty string.
    #[error("{0} is an empty path")]
    EmptyPath(&'static str),
    /// The state file and the memory file are one file.
    #[error("snapshot_path and the memory file are the same file: they must be two")]
    SameFile,
    /// A diff snapshot is asked for.
    #[error("Diff snapshots are not supported: use the snapshot_type \"Full\"")]
    DiffSnapshot,
    /// Neither or both of `mem_backend` and `mem_file_path`.
    #[error("exactly one of mem_backend and mem_file_path must be given")]
    MemoryBackend,
    /// Memory from a userfaultfd handler.
    #[error("the memory backend Uffd is not supported: use the backend_type \"File\"")]
    Uffd,
    /// `timeout_ms` is out of range.
    #[error("a wait of {0} ms was asked for: timeout_ms may be {MAX_WAIT_MS} at most")]
    WaitTooLong(u64),
    /// `quiesce_ms` is out of range.
    #[error("a quiesce_ms of {0} was asked for: it may be 1 to {MAX_QUIESCE_MS}")]
    Quiesce(u64),
    /// `count` is out of range.
    #[error("a count of {0} was asked for: it may be 1 to {MAX_SELF_SNAPSHOTS}")]
    SelfSnapshots(u32),
    /// `timeout_ms` of a gate is out of range.
    #[error("a gate with a time-out of {0} ms was asked for: timeout_ms may be 1 to {MAX_WAIT_MS}")]
    GateTimeout(u64),
    /// A gate for a machine that has nothing to adapt to.
    #[error(
        "a gate waits for the guest to adapt to a new generation: leave gate out, or have a new generation begun (\"generation\": \"new\")"
    )]
    GateOfKept,
    /// A field that must be there.
    #[error("missing field `{0}`")]
    Missing(&'static str),
    /// A drive that is to be two things.
    #[error("copy and overlay exclude each other: a drive override has one of them at most")]
    CopyAndOverlay,
    /// No name of a snapshot.
    #[error("a snapshot_id has 32 lower-case hexadecimal digits")]
    SnapshotId,
    /// A rate limiter that limits something.
    #[error("rate limiters are not supported: leave {0} out")]
    RateLimiter(&'static str),
    /// A drive behind a vhost-user socket.
    #[error("vhost-user drives are not supported: give path_on_host in place of socket")]
    VhostUser,
    /// The name in the path is another one than the name in the body.
    #[error("The id from the path [{0}] does not match the id from the body [{1}]!")]
    OtherId(String, String),
    /// No level of the log.
    #[error("{0:?} is no log level: Error, Warning, Info, Debug, Trace or Off")]
    Level(String),
    /// The configuration file asks for what is not there.
    #[error("{0} is not supported: take it out of the configuration file")]
    NotInConfigFile(&'static str),
}

/// Refuses an empty path.
pub(crate) fn not_empty(field: &'static str, path: PathBuf) -> Result<PathBuf, WireError> {
    if path.as_os_str().is_empty() {
        Err(WireError::EmptyPath(field))
    } else {
        Ok(path)
    }
}

/// Refuses a body about another thing than the path.
pub(crate) fn same_id(in_path: &str, in_body: &str) -> Result<(), WireError> {
    if in_path == in_body {
        return Ok(());
    }
    // Neither is repeated at length.
    let short = |text: &str| text.chars().take(64).collect();
    Err(WireError::OtherId(short(in_path), short(in_body)))
}

/// Refuses a limiter that would limit.
pub(crate) fn unlimited(
    field: &'static str,
    limiter: Option<&RateLimiter>,
) -> Result<(), WireError> {
    let limits = |bucket: &TokenBucket| bucket.size > 0 && bucket.refill_time > 0;
    let buckets = limiter.into_iter().flat_map(|l| [&l.bandwidth, &l.ops]);
    if buckets.flatten().any(limits) {
        Err(WireError::RateLimiter(field))
    } else {
        Ok(())
    }
}

/// A path that is no UTF-8 can only come from the command line; it is shown, never read back.
pub(crate) fn lossy(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().into_owned())
}
