//! The video memory, and where the guest sees it.
//!
//! The guest says where; the core decides whether it may be there, and maps it. The answer to the guest follows the core's. A
//! process that takes over goes on with the memory that its predecessor has made: the picture is in it.

use std::collections::VecDeque;
use std::sync::Arc;

use logs::Ration;
use vsp::{Channels, Request, SharedMemory};

use super::Video;
use crate::wire::HostMessage;

/// How often guests have wanted what they cannot have.
static REFUSED: Ration = Ration::new();

/// The video memory.
#[derive(Debug)]
pub(super) struct Location {
    /// Made by this process; used unless a predecessor's is.
    own: Arc<SharedMemory>,
    /// The one in use.
    memory: Arc<SharedMemory>,
    /// What the guest saw of a predecessor's memory, and has not been decided about.
    found: Vec<(u64, Arc<SharedMemory>)>,
    /// Where the guest sees `memory`.
    mapped: Option<u64>,
    /// What the core has been asked for.
    asked: Option<Asked>,
    /// The guest's questions, in order; the first is the one that the core has been asked for.
    questions: VecDeque<Question>,
}

/// The guest wants its video memory somewhere.
#[derive(Debug)]
struct Question {
    request: Request,
    context: u64,
    gpa: Option<u64>,
}

/// A question to the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    gpa: u64,
    /// For the guest; else to have things as the guest believes them to be.
    for_guest: bool,
}

impl Location {
    /// Memory that the guest does not see.
    pub fn new(own: SharedMemory) -> Location {
        let own = Arc::new(own);
        Location {
            memory: own.clone(),
            own,
            found: Vec::new(),
            mapped: None,
            asked: None,
            questions: VecDeque::new(),
        }
    }

    /// The one in use.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Where the guest sees it.
    pub fn mapped(&self) -> Option<u64> {
        self.mapped
    }

    /// The guest sees this of a predecessor's memory.
    pub fn found(&mut self, gpa: u64, memory: SharedMemory, bytes: u64) {
        // Never in part: its makers map all of it.
        if memory.len() == bytes {
            self.found.push((gpa, Arc::new(memory)));
        } else {
            tracing::warn!("a predecessor's video memory is mapped in part only: it is not used");
        }
    }

    /// All of a predecessor's is known; the guest believes that its memory is at `told`.
    pub fn resume(&mut self, told: Option<u64>, channels: &mut Channels) {
        for (gpa, memory) in std::mem::take(&mut self.found) {
            let is_told = Some(gpa) == told;
            if !is_told {
                // The guest has not been told of it. If its question comes again, it is mapped again, with the picture in it.
                channels.unmap_memory(gpa);
            }
            if is_told || self.mapped.is_none() {
                (self.memory, self.mapped) = (memory, is_told.then_some(gpa));
            }
        }
        if let Some(gpa) = told.filter(|_| self.mapped.is_none()) {
            // It died between taking it away and giving it again.
            self.map(Asked { gpa, for_guest: false }, channels);
        }
    }

    /// The guest wants it there.
    pub fn ask(&mut self, request: Request, context: u64, gpa: Option<u64>) {
        self.questions.push_back(Question { request, context, gpa });
    }

    /// The guest begins anew, and sees nothing of it; the questions that have to end.
    pub fn reset(&mut self) -> impl Iterator<Item = Request> {
        (self.mapped, self.asked, self.memory) = (None, None, self.own.clone());
        std::mem::take(&mut self.questions).into_iter().map(|question| question.request)
    }

    /// Somebody else serves.
    pub fn forget(&mut self) {
        self.found.clear();
    }

    fn map(&mut self, asked: Asked, channels: &mut Channels) {
        self.asked = Some(asked);
        channels.map_memory(asked.gpa, &self.memory, self.memory.len());
    }

    fn unmap(&mut self, channels: &mut Channels) {
        if let Some(gpa) = self.mapped.take() {
            channels.unmap_memory(gpa);
        }
    }
}

impl Video {
    /// Goes on with the guest's questions, unless the core has one.
    pub(super) fn locate(&mut self, channels: &mut Channels) {
        while self.location.asked.is_none() {
            let Some(question) = self.location.questions.front() else { return };
            match question.gpa {
                Some(gpa) => {
                    // There is one place at a time. The same one again changes nothing, and is as good an answer.
                    if self.location.mapped.is_some_and(|mapped| mapped != gpa) {
                        self.location.unmap(channels);
                        self.show();
                    }
                    self.location.map(Asked { gpa, for_guest: true }, channels);
                }
                None => {
                    self.location.unmap(channels);
                    self.answer_location(Ok(()), channels);
                }
            }
        }
    }

    /// The core has answered.
    pub(super) fn located(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        let Some(asked) = self.location.asked.take_if(|asked| asked.gpa == gpa) else { return };
        if let Err(why) = &result
            && let Some(times) = REFUSED.another()
        {
            tracing::warn!(times, "the guest cannot have its video memory at {gpa:#x}: {why}");
        }
        // Refused, what was there stays, which can be the same place only.
        let was = self.location.mapped == Some(gpa);
        self.location.mapped = (was || result.is_ok()).then_some(gpa);
        if asked.for_guest {
            self.answer_location(result, channels);
        } else {
            self.show();
        }
        self.attention = true;
        self.locate(channels);
    }

    /// Answers the first question.
    fn answer_location(&mut self, result: Result<(), String>, channels: &mut Channels) {
        let Some(Question { request, context, gpa }) = self.location.questions.pop_front() else { return };
        self.state.vram = self.location.mapped;
        // Drivers know a refusal by another context than theirs.
        let context = if result.is_ok() { context } else { !context };
        if result.is_ok() {
            tracing::debug!(?gpa, "the guest has its video memory");
        }
        self.reply(request, &HostMessage::VramLocationAck { context }, channels);
        self.show();
        self.attention = true;
    }
}
