//! The supervisor's connection to the core: who serves what, and planned swaps.
//!
//! It must never wait for the core, and never keep it alive: it is a connection, not a copy of the listener.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use ipc::config::DeviceSlot;
use ipc::message::{ToCore, VERSIONS};
use ipc::operator::{Device, Reply, Request};
use ipc::socket::{Peer, SocketError};

/// What the core was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    /// What it knows of every device.
    Devices,
    /// To hand over the device with this name.
    Swap,
    /// Something of the process that serves the device with this name.
    Tell(String),
    /// To have one device more, with this name.
    Add(String),
    /// To have the device with this name no more.
    Remove(String),
}

/// What comes of something that was said to a device's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its answer.
    Given(Result<String, String>),
    /// Nobody has answered: why.
    Missing(String),
}

/// What the core says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// What it knows of every device.
    Devices(Vec<Device>),
    /// A device was handed over; the pause in microseconds.
    Swapped(String, u64),
    /// A device was not handed over.
    SwapFailed(String, String),
    /// What the process that serves this device has answered, if one has.
    Told(String, Answer),
    /// It has one device more, with this name, or why not.
    Added(String, Result<(), String>),
    /// It has the device with this name no more, or why it still has.
    Removed(String, Result<(), String>),
    /// It has cut off a process of a device.
    CutOff {
        /// The device's name.
        device: String,
        /// Why.
        reason: String,
        /// It has served the device.
        had_channels: bool,
    },
}

/// The connection, made anew when it is needed and not there.
#[derive(Debug)]
pub struct Operator {
    socket: PathBuf,
    peer: Option<Peer>,
    asked: VecDeque<Question>,
}

impl Operator {
    /// Connects to the core's socket.
    pub fn new(socket: &Path) -> Self {
        let mut operator = Self { socket: socket.to_owned(), peer: None, asked: VecDeque::new() };
        operator.connect();
        operator
    }

    fn connect(&mut self) {
        let connected = Peer::connect(&self.socket).and_then(|peer| {
            peer.set_nonblocking(true)?;
            peer.send(&ToCore::Operator { versions: VERSIONS }, &[])?;
            Ok(peer)
        });
        match connected {
            Ok(peer) => self.peer = Some(peer),
            Err(error) => tracing::debug!(%error, "no connection to the core"),
        }
    }

    /// Asks what the core knows of every device. `false`: it cannot be asked.
    pub fn ask_for_devices(&mut self) -> bool {
        self.ask(&Request::Devices {}, &[], Question::Devices)
    }

    /// Asks the core to hand `device` over to the process that stands by. `false`: it cannot be asked.
    pub fn ask_for_swap(&mut self, device: &str) -> bool {
        // It has said that it stands by, and the core has known that before.
        self.ask(&Request::Swap { device: device.to_owned(), wait_ms: 1000 }, &[], Question::Swap)
    }

    /// Has something said to the process that serves `device`. `false`: the core cannot be asked.
    pub fn tell(&mut self, device: &str, payload: String, fds: &[OwnedFd]) -> bool {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = Request::Control { device: device.to_owned(), payload };
        self.ask(&request, &fds, Question::Tell(device.to_owned()))
    }

    /// Has the VM have one device more. `false`: the core cannot be asked.
    pub fn add(&mut self, slot: &DeviceSlot) -> bool {
        self.ask(&Request::DeviceAdd { slot: slot.clone() }, &[], Question::Add(slot.name.clone()))
    }

    /// Has the guest lose a device, whatever it does with it. `false`: the core cannot be asked.
    pub fn remove(&mut self, device: &str) -> bool {
        let request = Request::DeviceRemove { device: device.to_owned(), force: true };
        self.ask(&request, &[], Question::Remove(device.to_owned()))
    }

    /// Whether the process that serves `device` was told something and has not answered.
    pub fn has_told(&self, device: &str) -> bool {
        self.asked.iter().any(|question| matches!(question, Question::Tell(name) if name == device))
    }

    fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>], question: Question) -> bool {
        if self.peer.is_none() {
            self.connect();
        }
        match self.peer.as_ref().map(|peer| peer.send(request, fds)) {
            Some(Ok(())) => {
                self.asked.push_back(question);
                true
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the core cannot be asked");
                self.hang_up();
                false
            }
            None => false,
        }
    }

    fn hang_up(&mut self) {
        self.peer = None;
        self.asked.clear();
    }

    /// To be watched, if it is there.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.peer.as_ref().map(AsFd::as_fd)
    }

    /// The next thing that the core has said.
    pub fn listen(&mut self) -> Option<Said> {
        loop {
            match self.peer.as_ref()?.try_recv::<Reply>() {
                Ok((Reply::CutOff { device, reason, had_channels }, _)) => {
                    return Some(Said::CutOff { device, reason, had_channels });
                }
                Ok((reply, _)) => match (self.asked.pop_front(), reply) {
                    (Some(Question::Devices), Reply::Devices(devices)) => {
                        return Some(Said::Devices(devices));
                    }
                    (Some(Question::Swap), Reply::Swapped { device, pause_us }) => {
                        return Some(Said::Swapped(device, pause_us));
                    }
                    (Some(Question::Swap), Reply::Failed { device, reason }) => {
                        return Some(Said::SwapFailed(device, reason));
                    }
                    (Some(Question::Tell(name)), Reply::Control { device, result }) if name == device => {
                        return Some(Said::Told(device, Answer::Given(result)));
                    }
                    (Some(Question::Tell(name)), Reply::Failed { device, reason }) if name == device => {
                        return Some(Said::Told(device, Answer::Missing(reason)));
                    }
                    (Some(Question::Add(name)), Reply::Added { device }) if name == device => {
                        return Some(Said::Added(device, Ok(())));
                    }
                    (Some(Question::Add(name)), Reply::Failed { device, reason }) if name == device => {
                        return Some(Said::Added(device, Err(reason)));
                    }
                    (Some(Question::Remove(name)), Reply::Removed { device }) if name == device => {
                        return Some(Said::Removed(device, Ok(())));
                    }
                    (Some(Question::Remove(name)), Reply::Failed { device, reason }) if name == device => {
                        return Some(Said::Removed(device, Err(reason)));
                    }
                    (question, reply) => {
                        tracing::warn!(?question, ?reply, "the core answered something else than was asked");
                        self.hang_up();
                    }
                },
                Err(SocketError::WouldBlock) => return None,
                // A later core may say things that we do not know.
                Err(SocketError::Malformed(error)) => tracing::debug!(%error, "the core said something new"),
                Err(_) => {
                    self.hang_up();
                    return None;
                }
            }
        }
    }
}
