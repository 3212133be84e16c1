//! A device that replies by packets, notifies without being asked, keeps a state of its own accord and has memory mapped, in the
//! test's own process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use ipc::message::{MEMORY_VERSION, Offer, ToCore, ToVsp};
use ipc::shm::Mapping;
use vmbus::packet::{Outgoing, PacketHeader, PacketType};
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::{ChannelId, Channels, Device, Notify, OpenRequest, Packet, Refused, Request, SharedMemory};

const GPA: u64 = 0xf800_0000;
const BYTES: u64 = 8192;

/// Does what it is told, and says what it hears.
struct Speaker {
    channel: Option<ChannelId>,
    log: Vec<String>,
    memory: Arc<SharedMemory>,
    /// Who waits for memory to be mapped.
    asking: Option<Request>,
    /// Who waits until the test answers.
    held: Vec<Request>,
    /// To be said as soon as there is room.
    later: u32,
    replies: u32,
}

impl Speaker {
    fn new() -> Speaker {
        let memory = Arc::new(SharedMemory::create("test-device", 2 * BYTES).unwrap());
        Speaker {
            channel: None,
            log: Vec::new(),
            memory,
            asking: None,
            held: Vec::new(),
            later: 0,
            replies: 0,
        }
    }

    fn say(&mut self, channels: &mut Channels) {
        while self.later > 0 {
            match channels.notify(self.channel.unwrap(), &Outgoing::in_band(0, false), &[7; 104]) {
                Notify::Sent => self.later -= 1,
                Notify::Full => return,
                Notify::Dead => panic!("dead"),
            }
        }
    }
}

impl Device for Speaker {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
    }

    fn open(&mut self, channel: ChannelId, _: &OpenRequest) -> Result<(), Refused> {
        self.channel = Some(channel);
        self.log.push("open".into());
        Ok(())
    }

    fn restore(&mut self, _: ChannelId, state: &[u8]) -> Result<(), String> {
        self.log.push(format!("restore {}", String::from_utf8_lossy(state)));
        Ok(())
    }

    fn memory(&mut self, gpa: u64, memory: SharedMemory, bytes: u64) {
        let mut byte = [0];
        Mapping::new(&memory, 0, bytes).unwrap().read(0, &mut byte);
        self.log.push(format!("memory {gpa:#x} {bytes} {}", byte[0]));
        self.memory = Arc::new(memory);
    }

    fn memory_mapped(&mut self, gpa: u64, result: Result<(), String>, channels: &mut Channels) {
        self.log.push(format!("mapped {gpa:#x} {result:?}"));
        if let Some(request) = self.asking.take() {
            request.reply(
                channels,
                &[if result.is_ok() { b"mapped!!" } else { b"refused!" }],
                Some(b"mapped"),
            );
        }
    }

    fn adopted(&mut self, _: &mut Channels) {
        self.log.push("adopted".into());
    }

    fn room(&mut self, _: ChannelId, channels: &mut Channels) {
        self.log.push("room".into());
        self.say(channels);
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let said = String::from_utf8_lossy(packet.header.payload(packet.bytes));
        let said = said.trim_end_matches('\0').to_owned();
        self.log.push(format!("packet {said}"));
        match said.as_str() {
            "map" => {
                channels.map_memory(GPA, &self.memory, BYTES);
                self.asking = Some(request);
            }
            "unmap" => {
                channels.unmap_memory(GPA);
                request.complete(channels, &[]);
            }
            "save" => {
                assert!(channels.save_state(request.channel(), b"saved"));
                request.complete(channels, &[]);
            }
            "hold" => self.held.push(request),
            "large" => request.reply(channels, &[&[1; 3000], &[2; 3000]], Some(b"large")),
            _ => {
                self.replies += 1;
                let state = format!("state {}", self.replies);
                request.reply(channels, &[b"first...", b"second.."], Some(state.as_bytes()));
            }
        }
    }
}

fn ask(guest: &mut GuestEnd, id: u64, what: &str, completion: bool) {
    assert!(guest.send(&Outgoing::in_band(id, completion), &[what.as_bytes()]));
}

/// All that has come: the payload, and of completions their id.
fn said(guest: &mut GuestEnd) -> Vec<(Option<u64>, Vec<u8>)> {
    let name = |header: PacketHeader| {
        (header.packet_type == PacketType::COMPLETION).then_some(header.transaction_id)
    };
    std::iter::from_fn(|| guest.poll()).map(|(header, bytes)| (name(header), bytes)).collect()
}

fn log(bench: &mut Bench<Speaker>) -> Vec<String> {
    bench.runtime.device().log.iter().filter(|line| *line != "adopted").cloned().collect()
}

#[test]
fn a_request_is_answered_by_packets() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    ask(&mut guest, 5, "hello", false);
    bench.settle();
    let packets = [(None, b"first...".to_vec()), (None, b"second..".to_vec())];
    assert_eq!(said(&mut guest), packets);
    ask(&mut guest, 6, "hello", true);
    bench.settle();
    assert_eq!(
        said(&mut guest),
        [&[(Some(6), Vec::new())], &packets[..]].concat(),
        "the completion comes as well"
    );
    ask(&mut guest, 7, "hello", false);
    bench.turn(1);
    let mut bench = Bench::take_over(bench.kill(), Speaker::new());
    bench.settle();
    assert_eq!(log(&mut bench), ["open", "restore state 3"], "nothing is answered twice");
    assert_eq!(said(&mut guest), packets);
}

#[test]
fn answers_wait_for_room_and_their_packets_stay_together() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    // 4096 bytes of ring: 42 of these and a little more.
    bench.runtime.with_device(|device, channels| {
        let id = device.channel.unwrap();
        while channels.notify(id, &Outgoing::in_band(0, false), &[9; 80]) == Notify::Sent {}
    });
    ask(&mut guest, 5, "hello", true);
    bench.settle();
    assert_eq!(log(&mut bench), ["open", "packet hello"]);
    let before = said(&mut guest);
    assert!(before.iter().all(|(id, bytes)| id.is_none() && bytes == &[9; 80]), "no part of the answer");
    bench.settle();
    let after = [(Some(5), Vec::new()), (None, b"first...".to_vec()), (None, b"second..".to_vec())];
    assert_eq!(said(&mut guest), after);
    bench.close(1);
}

#[test]
fn an_answer_that_can_never_fit_ends_its_request() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    ask(&mut guest, 5, "large", false);
    bench.settle();
    assert!(said(&mut guest).is_empty());
    bench.close(1);
}

#[test]
fn what_finds_no_room_is_said_when_there_is() {
    let mut bench = Bench::new(Speaker { later: 100, ..Speaker::new() }, 0);
    let mut guest = bench.open(1, 1);
    let mut speaker_said = 0;
    bench.runtime.with_device(|device, channels| device.say(channels));
    while speaker_said < 100 {
        bench.settle();
        let said = said(&mut guest);
        assert!(!said.is_empty(), "after {speaker_said}");
        assert!(said.iter().all(|said| *said == (None, vec![7; 104])));
        speaker_said += said.len();
    }
    assert_eq!(speaker_said, 100);
    assert!(log(&mut bench).contains(&"room".to_owned()));
}

#[test]
fn a_state_is_saved_without_an_answer() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    ask(&mut guest, 5, "hello", false);
    ask(&mut guest, 6, "save", true);
    bench.settle();
    assert_eq!(said(&mut guest).len(), 3);
    let mut bench = Bench::take_over(bench.kill(), Speaker::new());
    assert_eq!(log(&mut bench), ["open", "restore saved"]);
    ask(&mut guest, 7, "hello", false);
    bench.settle();
    let mut bench = Bench::take_over(bench.kill(), Speaker::new());
    assert_eq!(log(&mut bench), ["open", "restore state 1"], "the next one wins");
}

#[test]
fn memory_outlives_its_process_and_not_its_channel() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    ask(&mut guest, 5, "map", false);
    let (_, answer) = bench.wait(&mut guest);
    assert_eq!(answer, b"mapped!!");
    assert_eq!(bench.core.mapped(), [(GPA, BYTES)]);
    let theirs = bench.core.mapped_memory(GPA).unwrap();
    Mapping::new(&theirs, 0, BYTES).unwrap().write(0, &[42]);

    let mut bench = Bench::take_over(bench.kill(), Speaker::new());
    assert_eq!(log(&mut bench), ["memory 0xf8000000 8192 42", "open", "restore mapped"]);
    ask(&mut guest, 6, "unmap", true);
    bench.settle();
    assert_eq!(bench.core.mapped(), []);
    ask(&mut guest, 7, "map", false);
    bench.wait(&mut guest);
    bench.wait(&mut guest);
    bench.close(1);
    assert_eq!(bench.core.mapped(), []);
}

#[test]
fn a_refusal_is_heard() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    bench.core.refuse_mappings(Some("no"));
    ask(&mut guest, 5, "map", false);
    assert_eq!(bench.wait(&mut guest).1, b"refused!");
    assert_eq!(log(&mut bench), ["open", "packet map", "mapped 0xf8000000 Err(\"no\")"]);
}

#[test]
fn an_older_core_is_not_asked() {
    let (mut core, vsp) = FakeCore::new(0);
    core.version = MEMORY_VERSION - 1;
    let mut bench = Bench::with_core(core, vsp, Speaker::new());
    let mut guest = bench.open(1, 1);
    ask(&mut guest, 5, "map", false);
    assert_eq!(bench.wait(&mut guest).1, b"refused!");
    ask(&mut guest, 6, "unmap", true);
    bench.settle();
    assert!(bench.core.try_answer().is_none(), "it was asked");
}

#[test]
fn memory_that_makes_no_sense_is_left_alone() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 1);
    bench.core.send(&ToVsp::Memory { gpa: GPA, bytes: BYTES });
    bench.core.send(&ToVsp::MemoryMapped { gpa: 1, result: Ok(()) });
    bench.settle();
    assert_eq!(log(&mut bench), ["open"]);
    ask(&mut guest, 5, "hello", false);
    bench.settle();
    assert_eq!(said(&mut guest).len(), 2);
    assert_ne!(bench.core.try_answer(), Some(ToCore::Quiesced {}));
}

#[test]
fn the_guest_sees_no_answer_before_the_core_has_been_told() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let mut guest = bench.open(1, 9);
    ask(&mut guest, 4, "map", false);
    bench.wait(&mut guest);
    (5..9).for_each(|id| ask(&mut guest, id, "hold", true));
    bench.settle();
    bench.runtime.with_device(|device, channels| {
        let id = device.channel.unwrap();
        let held = std::mem::take(&mut device.held);
        channels.unmap_memory(GPA);
        // Of two answers with states, the first is published to make place for the second.
        for request in held {
            request.reply(channels, &[b"gone...."], Some(b"gone"));
        }
        let notice = Outgoing::in_band(0, false);
        assert_eq!(channels.notify_with_state(id, &notice, b"notice..", b"late"), Notify::Full);
        assert!(!channels.save_state(id, b"too early") && !channels.has_room(id, 64));
    });
    assert!(said(&mut guest).is_empty(), "the core has not been told");
    assert_eq!(bench.core.mapped(), [(GPA, BYTES)]);
    bench.settle();
    assert_eq!(bench.core.mapped(), []);
    let answers = (5..9).flat_map(|id| [(Some(id), Vec::new()), (None, b"gone....".to_vec())]);
    assert!(said(&mut guest).into_iter().eq(answers));
    assert!(log(&mut bench).contains(&"room".to_owned()), "what found no room may be said again");
    let mut bench = Bench::take_over(bench.kill(), Speaker::new());
    assert_eq!(log(&mut bench), ["open", "restore gone"]);
}

#[test]
fn answers_about_a_channel_that_has_closed_are_not_the_next_one_s() {
    let mut bench = Bench::new(Speaker::new(), 0);
    let _guest = bench.open(1, 1);
    let map = |device: &mut Speaker, channels: &mut Channels| channels.map_memory(GPA, &device.memory, BYTES);
    bench.runtime.with_device(map);
    // The core is asked, and answers when the guest has closed the channel.
    bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    bench.core.close(1);
    bench.core.refuse_mappings(Some("closed"));
    bench.settle();
    assert_eq!(bench.core.try_answer(), Some(ToCore::Closed { channel: 1 }));
    assert_eq!(log(&mut bench), ["open"], "nobody wants to know");
    bench.core.refuse_mappings(None);
    let _guest = bench.open(2, 1);
    bench.runtime.with_device(map);
    bench.settle();
    assert_eq!(log(&mut bench), ["open", "open", "mapped 0xf8000000 Ok(())"]);
}
