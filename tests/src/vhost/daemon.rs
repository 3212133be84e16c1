//! A daemon of ours, by itself: no core, no supervisor.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::spawn::{Child, Command};

use crate::disk::Disk;
use crate::steps::LIMIT;
use crate::{trace, vm};

/// How often to look whether it is there, or gone.
const LOOK: Duration = Duration::from_millis(2);

/// Address of a NIC of ours.
pub const MAC: [u8; 6] = [0x02, 0xb0, 0x1c, 0xe4, 0xad, 0x02];

/// Who makes the socket.
#[derive(Debug)]
enum Door {
    /// The daemon.
    Path,
    /// We do, as a service manager that keeps it open while daemons come and go.
    Held(OwnedFd),
}

/// A daemon and the place for its files. It ends when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    recipe: Recipe,
}

/// What it takes to start one, again and again.
#[derive(Debug)]
struct Recipe {
    program: PathBuf,
    args: Vec<OsString>,
    door: Door,
    /// From 4 on.
    fds: Vec<Arc<OwnedFd>>,
    level: String,
    traced: bool,
    directory: PathBuf,
}

impl Daemon {
    /// `vsp-storage` with a disk; `options` begin with a comma if there are any.
    pub fn storage(disk: &Disk, options: &str) -> anyhow::Result<Self> {
        Self::builder("vsp-storage").args(["--disk", &disk.argument(options)]).start()
    }

    /// `vsp-net` on one end of a stream, with so many pairs of queues.
    pub fn net(stream: &Arc<OwnedFd>, pairs: u16) -> Builder {
        let (mac, pairs) = (MAC.map(|byte| format!("{byte:02x}")).join(":"), pairs.to_string());
        Self::builder("vsp-net").args(["--mac", &mac, "--queues", &pairs, "--stream-fd", "4"]).fd(stream)
    }

    /// Any of them.
    pub fn builder(program: &str) -> Builder {
        Builder {
            program: program.into(),
            args: Vec::new(),
            fds: Vec::new(),
            held: false,
            quiet: false,
            traced: false,
        }
    }

    /// Where to connect.
    pub fn socket(&self) -> PathBuf {
        self.recipe.socket()
    }

    /// A place for files.
    pub fn directory(&self) -> &Path {
        &self.recipe.directory
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Starts another one.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.start_with(&[])
    }

    /// The same with more arguments.
    pub fn start_with(&mut self, more: &[&str]) -> anyhow::Result<()> {
        self.child = self.recipe.spawn(more)?;
        Ok(())
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(begin.elapsed() < LIMIT, "the daemon lives on");
            std::thread::sleep(LOOK);
        }
    }

    /// It has not ended.
    pub fn lives(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the daemon has ended with {status}"),
        }
    }

    /// Ends a daemon that is traced, and waits until its trace is complete.
    pub fn end_traced(&mut self) -> anyhow::Result<ExitStatus> {
        let tracer = self.child.pid();
        let below = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children"))?;
        for pid in below.split_whitespace() {
            // What ends by itself meanwhile need not be ended.
            let _ = kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL);
        }
        self.ended()
    }

    /// What a daemon that is traced has done: see [`Builder::traced`].
    pub fn trace(&self) -> anyhow::Result<String> {
        let text =
            std::fs::read(trace::log(&self.recipe.directory, "daemon")).context("there is no trace")?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = std::fs::remove_dir_all(&self.recipe.directory);
    }
}

impl Recipe {
    fn socket(&self) -> PathBuf {
        self.directory.join("front.sock")
    }

    fn spawn(&self, more: &[&str]) -> anyhow::Result<Child> {
        let command = match self.traced {
            false => Command::new(&self.program),
            true => trace::command(&self.program, &trace::log(&self.directory, "daemon"))?,
        };
        let command =
            (4..).zip(&self.fds).fold(command, |command, (number, fd)| command.fd(fd.as_fd(), number));
        let command = match &self.door {
            Door::Path => command.arg("--vhost-user").arg(self.socket()),
            Door::Held(listener) => command.args(["--vhost-user-fd", "3"]).fd(listener.as_fd(), 3),
        };
        Ok(command
            .args(["--device", "test"])
            .args(&self.args)
            .args(more)
            .args(["--log-level", &self.level])
            .spawn()?)
    }
}

/// What a daemon is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    program: String,
    args: Vec<OsString>,
    fds: Vec<Arc<OwnedFd>>,
    held: bool,
    quiet: bool,
    traced: bool,
}

impl Builder {
    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives each of its processes a descriptor more, from 4 on.
    pub fn fd(mut self, fd: &Arc<OwnedFd>) -> Self {
        self.fds.push(Arc::clone(fd));
        self
    }

    /// Its socket is made by the test, and stays open when it dies.
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// Errors are expected and not shown, unless `BULKHEAD_TEST_LOG` asks for them.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Runs it under strace, for the audit of its policy.
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> anyhow::Result<Daemon> {
        let directory = vm::scratch()?;
        let door = match self.held {
            true => Door::Held(UnixListener::bind(directory.join("front.sock"))?.into()),
            false => Door::Path,
        };
        let level = if self.quiet { "off" } else { "error" };
        let level = std::env::var("BULKHEAD_TEST_LOG").unwrap_or(level.into());
        let program = vm::program(&self.program)?;
        let recipe =
            Recipe { program, args: self.args, door, fds: self.fds, level, traced: self.traced, directory };
        Ok(Daemon { child: recipe.spawn(&[])?, recipe })
    }
}
