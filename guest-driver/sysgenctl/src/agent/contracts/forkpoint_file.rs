//! The file whose read returns when the machine has been forked: for a shell, and whatever has no calls of the
//! device's.
//!
//! It is a file system of one file, by FUSE, mounted at the file's own place. A library of which a reader that
//! waits can be interrupted: the control groups' freezer does that, and one that could not be would keep its
//! whole group from being frozen.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use fuse3::raw::reply::{
    DirectoryEntry, DirectoryEntryPlus, FileAttr, ReplyAttr, ReplyData, ReplyEntry, ReplyInit,
    ReplyOpen,
};
use fuse3::raw::{Filesystem, Request, Session};
use fuse3::{Errno, FileType, MountOptions};
use futures_util::stream::Empty;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{Contract, ContractError, Turn};
use crate::agent::cycle::Resumed;
use crate::data;

/// How many files may be open at once, by whomever.
const MOST: usize = 4096;
/// What the kernel calls the file's inode: that of the root.
const ROOT: u64 = 1;
/// A regular file that everybody may read, as the mount takes it: in octal.
const ROOT_MODE: u32 = 100_444;
/// No page of it is kept: `FOPEN_DIRECT_IO`. Positions are taken and mean nothing: programs that take it for a regular file
/// go back to the end of the line that they have read.
const DIRECT_IO: u32 = 1;
/// How long the kernel believes what it was told of the file.
const TTL: Duration = Duration::from_secs(1);

/// What a read returns, and which in order it is; nothing before the first.
#[derive(Clone, Debug, Default)]
struct News {
    number: u64,
    text: Arc<str>,
}

/// The contract.
pub(super) struct ForkpointFile {
    path: PathBuf,
    news: watch::Sender<News>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A snapshot is under way: the original is told of it.
    asked: bool,
    /// The generation that was told of last, as a clone's.
    told: Option<u32>,
}

impl ForkpointFile {
    /// Mounts the file, which goes with the agent.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(super) fn mount(path: &Path) -> io::Result<Self> {
        // What an agent that was killed has left: nobody answers there.
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        if !path.exists() {
            fs::write(path, "")?;
        }
        let (news, hears) = watch::channel(News::default());
        let (is_mounted, mounted) = std::sync::mpsc::channel();
        let place = path.to_owned();
        let serve = move || serve(&place, hears, &is_mounted);
        thread::Builder::new()
            .name("forkpoint".into())
            .spawn(serve)?;
        let ended = |_| io::Error::other("its thread has ended");
        mounted.recv().map_err(ended).and_then(|mounted| mounted)?;
        Ok(Self {
            path: path.into(),
            news,
            state: Mutex::default(),
        })
    }

    fn tell(&self, role: &str, generation: u32) {
        let instance = data::instance().ok();
        let told = json!({ "role": role, "generation": generation, "instance": instance });
        self.news.send_modify(|news| {
            news.number += 1;
            news.text = format!("{told}\n").into();
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contract for ForkpointFile {
    fn name(&self) -> &'static str {
        "forkpoint-file"
    }

    fn before(&self, _: &Turn<'_>) -> Result<(), ContractError> {
        self.state().asked = true;
        Ok(())
    }

    fn adapting(&self, new: u32) {
        let mut state = self.state();
        state.asked = false;
        if state.told.replace(new) != Some(new) {
            self.tell("clone", new);
        }
    }

    fn after(&self, outcome: Resumed, turn: &Turn<'_>) -> Result<(), ContractError> {
        let asked = std::mem::take(&mut self.state().asked);
        if asked && outcome == Resumed::Original {
            self.tell("original", turn.new);
        }
        Ok(())
    }
}

impl Drop for ForkpointFile {
    fn drop(&mut self) {
        // Whoever reads has an error then, as the agent has gone.
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Mounts the file, says how that ended, and answers until it is unmounted.
fn serve(
    path: &Path,
    news: watch::Receiver<News>,
    is_mounted: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    // Its receiver waits for just this.
    let say = |said| drop(is_mounted.send(said));
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return say(Err(error)),
    };
    runtime.block_on(async {
        let mut options = MountOptions::default();
        options
            .fs_name("forkpoint")
            .rootmode(ROOT_MODE)
            .nonempty(true)
            .allow_other(true)
            .default_permissions(true)
            .read_only(true);
        match Session::new(options).mount(Server::new(news), path).await {
            Ok(mounted) => {
                say(Ok(()));
                // Ends when the file is unmounted; the agent tells of nothing then.
                let _ = mounted.await;
            }
            Err(error) => say(Err(error)),
        }
    });
}

/// The file system.
struct Server {
    news: watch::Receiver<News>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    files: HashMap<u64, File>,
    /// Reads that wait, by the kernel's numbers of them.
    waiting: HashMap<u64, oneshot::Sender<()>>,
}

/// An open file: what it has been told, with the number of that, and how much of it it has read.
struct File {
    told: News,
    read: usize,
    nonblocking: bool,
}

impl Server {
    fn new(news: watch::Receiver<News>) -> Self {
        Self {
            news,
            open: Mutex::default(),
        }
    }

    fn open_files(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next bytes of this file: what is left of the line that it was told, or the next line, which is waited
    /// for.
    async fn next(&self, request: u64, file: u64, size: usize) -> fuse3::Result<Vec<u8>> {
        let mut news = self.news.clone();
        let (number, nonblocking, interrupted) = {
            let mut open = self.open_files();
            let found = open.files.get_mut(&file).ok_or(Errno::from(libc::EBADF))?;
            let left = found.take(size);
            if !left.is_empty() {
                return Ok(left);
            }
            let (number, nonblocking) = (found.told.number, found.nonblocking);
            let (interrupt, interrupted) = oneshot::channel();
            open.waiting.insert(request, interrupt);
            (number, nonblocking, interrupted)
        };
        let told = tokio::select! {
            biased;
            told = news.wait_for(|news| news.number != number) => {
                told.map(|told| told.clone()).map_err(|_| Errno::from(libc::EIO))
            }
            () = std::future::ready(()), if nonblocking => Err(libc::EAGAIN.into()),
            _ = interrupted => Err(libc::EINTR.into()),
        };
        let mut open = self.open_files();
        open.waiting.remove(&request);
        let told = told?;
        let found = open.files.get_mut(&file).ok_or(Errno::from(libc::EBADF))?;
        // Two may read the same open file: the line is told once.
        if found.told.number != told.number {
            (found.told, found.read) = (told, 0);
        }
        Ok(found.take(size))
    }
}

impl File {
    /// The next bytes of its line, at most `size`.
    fn take(&mut self, size: usize) -> Vec<u8> {
        let left = self
            .told
            .text
            .as_bytes()
            .get(self.read..)
            .unwrap_or_default();
        let taken = left[..left.len().min(size)].to_vec();
        self.read += taken.len();
        taken
    }
}

impl Filesystem for Server {
    // It has no directories.
    type DirEntryStream<'a>
        = Empty<fuse3::Result<DirectoryEntry>>
    where
        Self: 'a;
    type DirEntryPlusStream<'a>
        = Empty<fuse3::Result<DirectoryEntryPlus>>
    where
        Self: 'a;

    async fn init(&self, _: Request) -> fuse3::Result<ReplyInit> {
        Ok(ReplyInit {
            max_write: NonZeroU32::MIN.saturating_add(4095),
        })
    }

    async fn destroy(&self, _: Request) {}

    async fn getattr(
        &self,
        _: Request,
        inode: u64,
        _: Option<u64>,
        _: u32,
    ) -> fuse3::Result<ReplyAttr> {
        if inode != ROOT {
            return Err(libc::ENOENT.into());
        }
        let never = SystemTime::UNIX_EPOCH.into();
        let attr = FileAttr {
            ino: ROOT,
            size: 0,
            blocks: 0,
            atime: never,
            mtime: never,
            ctime: never,
            kind: FileType::RegularFile,
            perm: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        };
        Ok(ReplyAttr { ttl: TTL, attr })
    }

    async fn lookup(&self, _: Request, _: u64, _: &OsStr) -> fuse3::Result<ReplyEntry> {
        Err(libc::ENOTDIR.into())
    }

    async fn open(&self, _: Request, _: u64, flags: u32) -> fuse3::Result<ReplyOpen> {
        let told = News {
            number: self.news.borrow().number,
            text: Arc::default(),
        };
        let mut open = self.open_files();
        if open.files.len() >= MOST {
            return Err(libc::ENFILE.into());
        }
        open.last += 1;
        let fh = open.last;
        let nonblocking = flags & libc::O_NONBLOCK.cast_unsigned() != 0;
        let file = File {
            told,
            read: 0,
            nonblocking,
        };
        open.files.insert(fh, file);
        Ok(ReplyOpen {
            fh,
            flags: DIRECT_IO,
        })
    }

    async fn read(
        &self,
        request: Request,
        _: u64,
        fh: u64,
        _: u64,
        size: u32,
    ) -> fuse3::Result<ReplyData> {
        let data = self.next(request.unique, fh, size as usize).await?;
        Ok(ReplyData { data: data.into() })
    }

    async fn interrupt(&self, _: Request, unique: u64) -> fuse3::Result<()> {
        if let Some(waiting) = self.open_files().waiting.remove(&unique) {
            // It has ended meanwhile, or ends by this.
            let _ = waiting.send(());
        }
        Ok(())
    }

    async fn release(
        &self,
        _: Request,
        _: u64,
        fh: u64,
        _: u32,
        _: u64,
        _: bool,
    ) -> fuse3::Result<()> {
        self.open_files().files.remove(&fh);
        Ok(())
    }

    async fn flush(&self, _: Request, _: u64, _: u64, _: u64) -> fuse3::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "forkpoint_file_test.rs"]
mod tests;
