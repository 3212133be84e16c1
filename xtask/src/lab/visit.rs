//! Lets a [visitor](Visit) into the lab when the job says so.

use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::{Doors, Said, VNC_PORT, Visit, WEB_PORT};

/// How long a visitor may stay after the job's end.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// A visitor who has not come yet, is there, or has gone.
pub struct Expected {
    visit: Visit,
    said: Said,
    state: State,
}

enum State {
    Waits(Doors),
    Inside(Receiver<Result<String>>),
    Gone,
}

/// What the visitor had to say of a failure is in the output.
#[derive(Debug)]
pub struct VisitFailed;

impl Expected {
    /// Finds ports; the visitor's files are in a directory of its own below `directory`.
    pub fn new(visit: Visit, directory: &Path) -> Result<Self> {
        let said = Said::default();
        // Both at the same time, so that they differ.
        let listeners = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)));
        let mut ports = Vec::new();
        for listener in &listeners {
            let listener =
                listener.as_ref().map_err(|error| anyhow::anyhow!("looking for a free port: {error}"))?;
            ports.push(listener.local_addr()?.port());
        }
        let directory = directory.join("visitor");
        std::fs::create_dir_all(&directory).context("making the visitor's directory")?;
        let doors = Doors { vnc: ports[0], web: ports[1], directory, said: said.clone() };
        Ok(Self { visit, said, state: State::Waits(doors) })
    }

    /// Ports outside and those inside that they lead to.
    pub fn doors(&self) -> Vec<(u16, u16)> {
        match &self.state {
            State::Waits(doors) => vec![(doors.vnc, VNC_PORT), (doors.web, WEB_PORT)],
            _ => Vec::new(),
        }
    }

    /// The job has printed `text`.
    pub fn hear(&mut self, text: &[u8]) {
        self.said.add(text);
    }

    /// Whether the visitor's time has come, or is over; adds what it says to `output`.
    pub fn look(&mut self, output: &mut Vec<u8>) -> Result<(), VisitFailed> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Waits(doors) => {
                if !self.said.text().contains(self.visit.when) {
                    self.state = State::Waits(doors);
                    return Ok(());
                }
                let (sender, receiver) = channel();
                let visitor = self.visit.visitor;
                // Nobody may listen any more.
                thread::spawn(move || drop(sender.send(visitor(&doors))));
                self.state = State::Inside(receiver);
            }
            State::Inside(receiver) => match receiver.try_recv() {
                Ok(result) => return tell(result, output),
                Err(TryRecvError::Empty) => self.state = State::Inside(receiver),
                Err(TryRecvError::Disconnected) => return panicked(output),
            },
            State::Gone => {}
        }
        Ok(())
    }

    /// The job has ended; so does the visit.
    pub fn end(&mut self, output: &mut Vec<u8>) -> Result<(), VisitFailed> {
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Inside(receiver) => match receiver.recv_timeout(LEAVE_LIMIT) {
                Ok(result) => tell(result, output),
                Err(RecvTimeoutError::Timeout) => tell(Err(anyhow::anyhow!("does not leave")), output),
                Err(RecvTimeoutError::Disconnected) => panicked(output),
            },
            State::Waits(_) => tell(Err(anyhow::anyhow!("was never let in")), output),
            State::Gone => Ok(()),
        }
    }
}

fn panicked(output: &mut Vec<u8>) -> Result<(), VisitFailed> {
    tell(Err(anyhow::anyhow!("panicked")), output)
}

fn tell(result: Result<String>, output: &mut Vec<u8>) -> Result<(), VisitFailed> {
    let (text, result) = match result {
        Ok(text) => (text, Ok(())),
        Err(error) => (format!("the visitor: {error:#}"), Err(VisitFailed)),
    };
    output.extend_from_slice(format!("{text}\n").as_bytes());
    result
}
