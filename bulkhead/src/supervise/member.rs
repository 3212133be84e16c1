//! Processes that run, and their ends.

use std::os::fd::{AsFd, BorrowedFd};

use sandbox::spawn::Child;

use super::fate::Death;
use super::notify::{Message, Notify};

/// A process that is running, or was.
#[derive(Debug)]
pub struct Member {
    /// The name in the log: `core-vmm`, or the device's.
    pub name: String,
    /// `None` once it has been reaped.
    child: Option<Child>,
}

impl Member {
    /// One that has just been started.
    pub fn new(name: &str, child: Child) -> Self {
        Self { name: name.to_owned(), child: Some(child) }
    }

    /// Its process id; `None` once it has been reaped.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Writes down that it has been started.
    pub fn log_start(&self) {
        if let Some(child) = &self.child {
            let (pid, own_pid_namespace) = (child.pid(), child.own_pid_namespace());
            tracing::info!(process = self.name, pid, own_pid_namespace, "started");
        }
    }

    /// Readable once it has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(AsFd::as_fd)
    }

    /// Kills it, if it lives.
    pub fn kill(&self) {
        if let Some(child) = &self.child
            && let Err(error) = child.kill()
        {
            tracing::error!(process = self.name, %error, "cannot be killed");
        }
    }

    /// Asks it for its end.
    pub fn abort(&self) {
        if let Some(child) = &self.child
            && let Err(error) = child.signal(libc::SIGABRT)
        {
            tracing::error!(process = self.name, %error, "cannot be sent SIGABRT");
        }
    }

    /// Reaps it if it has ended.
    pub fn reap(&mut self) -> Option<Death> {
        let death = match self.child.as_mut()?.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => Death::from(status),
            Err(error) => {
                // Nobody else waits for our children, so this does not happen; what cannot be waited for is gone.
                tracing::error!(process = self.name, %error, "cannot be waited for");
                Death::Unknown(0)
            }
        };
        self.child = None;
        Some(death)
    }
}

/// No process is left behind on any way out.
impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// A device process, and what it has said.
#[derive(Debug)]
pub struct DeviceProcess {
    /// The process.
    pub member: Member,
    notify: Notify,
    /// The forbidden system call that it has made.
    forbidden: Option<String>,
}

impl DeviceProcess {
    /// One that has just been started.
    pub fn new(member: Member, notify: Notify) -> Self {
        Self { member, notify, forbidden: None }
    }

    /// Where it says how it is.
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }

    /// What it has said since the last time.
    pub fn listen(&mut self) -> Vec<Message> {
        let mut messages: Vec<Message> = self.notify.messages().collect();
        for message in &mut messages {
            if let Some(call) = message.forbidden.take() {
                self.forbidden = Some(call);
            }
        }
        messages
    }

    /// Reaps it if it has ended; listen first.
    pub fn reap(&mut self) -> Option<Death> {
        let death = self.member.reap()?;
        match (death, self.forbidden.take()) {
            (Death::Killed(nix::sys::signal::Signal::SIGSYS), Some(call)) => Some(Death::Forbidden(call)),
            (death, _) => Some(death),
        }
    }
}
