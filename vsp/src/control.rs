//! What an operator wants of a device while it serves: passed on by the core, which does not read it. A linear value, as
//! [`crate::Request`] is one.

use std::os::fd::OwnedFd;

use ipc::message::MAX_CONTROL;

use crate::channels::Channels;

/// Something that an operator wants, to be answered once, now or later. Dropped, it is not answered, and the core gives it up after a while.
///
/// It comes from the host's side and may be believed. What is answered is read by whoever asked; the core passes it on unread.
#[must_use = "an operator waits: answer it"]
#[derive(Debug)]
pub struct Control {
    id: u64,
    /// What is wanted, in the device's own words.
    pub payload: String,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

impl Control {
    pub(crate) fn new(id: u64, payload: String, fds: Vec<OwnedFd>) -> Control {
        Control { id, payload, fds }
    }

    /// Answers it, at the end of the turn: behind everything that the device has sent to its guest by then. An error is a sentence.
    pub fn answer(self, channels: &mut Channels, result: Result<String, String>) {
        let result = match result {
            Ok(text) if text.len() > MAX_CONTROL => Err("the answer is too long to be sent".into()),
            result => result,
        };
        channels.answer_control(self.id, result);
    }
}
