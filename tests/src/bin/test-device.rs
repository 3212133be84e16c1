//! A device for tests of what a device can do besides answering by completions: it replies by packets, notifies, keeps a state of its own
//! accord, and has memory of its own mapped. What its packets say is in [`bulkhead_tests::scribe`]. Started by tests only.

#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, RawFd},
    process::ExitCode,
    sync::Arc,
};

use bulkhead_tests::scribe::{Order, Word};
use clap::Parser;
use vsp::{
    ChannelId, Channels, Device, Notify, Offer, OpenRequest, Outgoing, Packet, Program, Refused, Request,
    SharedMemory, ipc::shm::ShmError, vmbus::guid::class,
};

const PROGRAM: Program = Program { name: "test-device", policy: vsp::policies::VSP_ECHO };
/// Bytes of its own.
const BYTES: u64 = 1 << 20;

#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    common: vsp::Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    vsp::serve(PROGRAM, &args.common, || {
        let memory = Arc::new(SharedMemory::create("test-device", BYTES)?);
        let (state, waiting) = (State::default(), VecDeque::new());
        Ok::<_, ShmError>(Scribe { state, memory, asking: None, waiting, owed: 0..0 })
    })
}

/// What a successor has to know.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Requests answered.
    answered: u64,
    /// What is kept.
    saved: u64,
}

impl State {
    fn bytes(self) -> [u8; 16] {
        (u128::from(self.saved) << 64 | u128::from(self.answered)).to_le_bytes()
    }
}

#[derive(Debug)]
struct Scribe {
    state: State,
    memory: Arc<SharedMemory>,
    /// Waits for memory to be mapped.
    asking: Option<Request>,
    /// Orders that wait for that: everything is answered in order.
    waiting: VecDeque<(Order, Request)>,
    /// Notices that found no room.
    owed: std::ops::Range<u64>,
}

impl Scribe {
    fn answer(&mut self, request: Request, channels: &mut Channels, value: u64) {
        self.state.answered += 1;
        let word = Word::Done { number: self.state.answered, value };
        request.reply(channels, &[&word.bytes()], Some(&self.state.bytes()));
    }

    /// Carries out what there is to do, up to what has to wait for the core.
    fn go_on(&mut self, channels: &mut Channels) {
        while self.asking.is_none()
            && let Some((order, request)) = self.waiting.pop_front()
        {
            let channel = request.channel();
            match order {
                Order::Map { gpa, bytes } => {
                    channels.map_memory(gpa, &self.memory, bytes);
                    self.asking = Some(request);
                    return;
                }
                Order::Unmap { gpa } => channels.unmap_memory(gpa),
                Order::Notify { count } => {
                    self.owed = 1..count + 1;
                    self.notify(channel, channels);
                }
                Order::Save { value } => {
                    let state = State { saved: value, ..self.state };
                    if channels.save_state(channel, &state.bytes()) {
                        self.state = state;
                    }
                }
                Order::Count => {}
            }
            self.answer(request, channels, self.state.saved);
        }
    }

    fn notify(&mut self, channel: ChannelId, channels: &mut Channels) {
        while self.owed.start < self.owed.end {
            let word = Word::Notice { number: self.owed.start };
            if channels.notify(channel, &Outgoing::in_band(0, false), &word.bytes()) != Notify::Sent {
                return;
            }
            self.owed.start += 1;
        }
    }
}

impl Device for Scribe {
    fn offer(&self) -> Offer {
        Offer { class: class::ECHO.to_string(), ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.memory.as_fd().as_raw_fd()]
    }

    fn open(&mut self, _: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        (self.state, self.owed) = (State::default(), 0..0);
        if request.subchannel == 0 { Ok(()) } else { Err(Refused::default()) }
    }

    fn memory(&mut self, _: u64, memory: SharedMemory, _: u64) {
        self.memory = Arc::new(memory);
    }

    fn restore(&mut self, _: ChannelId, state: &[u8]) -> Result<(), String> {
        let state: [u8; 16] = state.try_into().map_err(|_| "it is of another length")?;
        let state = u128::from_le_bytes(state);
        self.state = State { answered: state as u64, saved: (state >> 64) as u64 };
        Ok(())
    }

    fn memory_mapped(&mut self, _: u64, result: Result<(), String>, channels: &mut Channels) {
        if let Some(request) = self.asking.take() {
            self.answer(request, channels, u64::from(result.is_ok()));
        }
        self.go_on(channels);
    }

    fn room(&mut self, channel: ChannelId, channels: &mut Channels) {
        self.notify(channel, channels);
    }

    fn depth(&self) -> u32 {
        16
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        match Order::parse(packet.header.payload(packet.bytes)) {
            None => request.complete(channels, &[]),
            Some(order) => {
                self.waiting.push_back((order, request));
                self.go_on(channels);
            }
        }
    }

    fn closing(&mut self, _: ChannelId) {
        self.owed = 0..0;
    }
}
