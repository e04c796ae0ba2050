//! A pseudo-terminal, and a program that has it as its controlling terminal.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::ptr;
use std::thread;
use std::time::Duration;

use vm_agent::patience::{Patience, Progress, processor_time};

/// A program in the foreground of a terminal of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    keyboard: File,
    /// Held open, so that the settings outlive the program.
    terminal: File,
    screen: Vec<u8>,
}

/// The settings that raw mode changes, in a form that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
}

impl Settings {
    /// Do keys arrive at once, without an echo and without making signals?
    pub fn is_raw(self) -> bool {
        self.local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

impl OnTerminal {
    /// Starts `command` with a new terminal as its controlling terminal, standard input and output; standard error too.
    pub fn start(command: &mut Command) -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: writes two numbers; null stands for no name, no settings and no size.
        let result = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: both are new and owned by nobody else.
        let (keyboard, terminal) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        let end = || Stdio::from(terminal.try_clone().expect("the terminal, once more"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only setsid and ioctl are called, both async-signal-safe; descriptor 0 is the terminal.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        Self {
            child,
            keyboard,
            terminal,
            screen: Vec::new(),
        }
    }

    /// What the terminal is set to.
    pub fn settings(&self) -> Settings {
        // SAFETY: an all-zero termios is a valid one; tcgetattr overwrites it.
        let settings = unsafe {
            let mut settings: libc::termios = std::mem::zeroed();
            let result = libc::tcgetattr(self.terminal.as_raw_fd(), &mut settings);
            assert_eq!(result, 0, "tcgetattr: {}", io::Error::last_os_error());
            settings
        };
        Settings {
            input: settings.c_iflag,
            output: settings.c_oflag,
            control: settings.c_cflag,
            local: settings.c_lflag,
        }
    }

    /// Types `keys`.
    pub fn send(&mut self, keys: &[u8]) {
        self.keyboard
            .write_all(keys)
            .expect("the terminal takes keys");
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads the screen until it shows `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let mut patience = Patience::new(limit);
        while !self.screen_text().contains(text) {
            assert!(
                !patience.is_over_at(|| self.progress()),
                "no {text:?} within {limit:?}: {:?}",
                self.screen_text()
            );
            self.read_screen(Duration::from_millis(50));
        }
    }

    /// Waits for the program's end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut patience = Patience::new(limit);
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                self.read_screen(Duration::ZERO);
                return status;
            }
            let over = patience.is_over_at(|| self.progress());
            assert!(!over, "no end within {limit:?}");
            self.read_screen(Duration::from_millis(20));
        }
    }

    /// Everything that was shown so far.
    pub fn screen_text(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    fn progress(&self) -> Progress {
        Progress {
            done: self.screen.len() as u64,
            worked: processor_time(self.child.id()),
        }
    }

    fn read_screen(&mut self, wait: Duration) {
        let mut poll = libc::pollfd {
            fd: self.keyboard.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let wait = libc::c_int::try_from(wait.as_millis()).expect("a short time");
        // SAFETY: one valid pollfd, which lives through the call.
        let ready = unsafe { libc::poll(&mut poll, 1, wait) };
        if ready <= 0 {
            return;
        }
        let mut buffer = [0; 4096];
        match self.keyboard.read(&mut buffer) {
            Ok(len) => self.screen.extend_from_slice(&buffer[..len]),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
