//! A device that lends, asks for GPADLs and has memory fetched, in the test's own process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ipc::message::{Offer, ToCore};
use ipc::shm::Mapping;
use vmbus::packet::{Outgoing, PacketHeader, PacketType, gpa_direct_header};
use vsp::testing::{Bench, FakeCore, GuestEnd};
use vsp::{
    ChannelId, Channels, Device, Lend, OpenRequest, Packet, Refused, Request, SharedMemory, TransferPages,
    TransferRange,
};

const LOANS: u32 = 4;
const GPADL: u32 = 9;

/// Lends block N when it is told `lend N`, shares when it is told `share`; says what it hears.
#[derive(Debug, Default)]
struct Lender {
    loans: u32,
    wants: u32,
    channel: Option<ChannelId>,
    log: Vec<String>,
    buffer: Option<Mapping>,
    /// Lends again what comes back.
    again: bool,
    /// To be lent as soon as there is room.
    later: Vec<u32>,
}

impl Lender {
    fn new() -> Lender {
        Lender { loans: LOANS, ..Lender::default() }
    }

    fn lend(&mut self, channels: &mut Channels, loan: u32) -> Lend {
        let ranges = [TransferRange::new(loan * 4096, 100), TransferRange::new(loan * 4096 + 200, 60)];
        let pages = TransferPages { page_set: 0xcafe, ranges: &ranges };
        channels.lend(self.channel.unwrap(), loan, &pages, b"rndis-pk")
    }
}

impl Device for Lender {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
    }

    fn loans(&self) -> u32 {
        self.loans
    }

    fn open(&mut self, channel: ChannelId, _: &OpenRequest) -> Result<(), Refused> {
        self.channel = Some(channel);
        self.log.push("open".into());
        Ok(())
    }

    fn lent(&mut self, _: ChannelId, loan: u32) {
        self.log.push(format!("lent {loan}"));
    }

    fn restore(&mut self, _: ChannelId, state: &[u8]) -> Result<(), String> {
        self.log.push(format!("restore {}", String::from_utf8_lossy(state)));
        Ok(())
    }

    fn resumed(&mut self, channel: ChannelId, channels: &mut Channels) {
        self.log.push("resumed".into());
        channels.share_gpadl(channel, GPADL);
    }

    fn returned(&mut self, _: ChannelId, loan: u32, payload: &[u8], channels: &mut Channels) {
        self.log.push(format!("returned {loan} {}", String::from_utf8_lossy(payload)));
        if self.again {
            assert_eq!(self.lend(channels, loan), Lend::Lent);
        }
    }

    fn room(&mut self, _: ChannelId, channels: &mut Channels) {
        self.log.push("room".into());
        while let Some(loan) = self.later.pop() {
            if self.lend(channels, loan) == Lend::Full {
                self.later.push(loan);
                break;
            }
        }
    }

    fn gpadl_shared(
        &mut self,
        _: ChannelId,
        gpadl: u32,
        pages: Result<SharedMemory, String>,
        _: &mut Channels,
    ) {
        match pages {
            Ok(pages) => {
                self.log.push(format!("shared {gpadl}"));
                self.buffer = Some(Mapping::new(&pages, 0, pages.len()).unwrap());
            }
            Err(why) => self.log.push(format!("not shared {gpadl}: {why}")),
        }
    }

    fn fetches(&self, header: &PacketHeader, packet: &[u8]) -> u32 {
        assert_eq!(header.payload(packet), b"fetch me");
        self.wants
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let said =
            String::from_utf8_lossy(packet.header.payload(packet.bytes)).trim_end_matches('\0').to_owned();
        self.log.push(format!("packet {said}"));
        match said.split_once(' ').unwrap_or((&said, "")) {
            ("lend", number) => {
                let loan = number.parse().unwrap();
                request.complete_with_state(channels, b"done", b"state");
                if self.lend(channels, loan) == Lend::Full {
                    self.later.push(loan);
                }
                return;
            }
            ("share", _) => channels.share_gpadl(request.channel(), GPADL),
            ("return", _) => {
                self.buffer = None;
                channels.return_gpadl(request.channel(), GPADL);
            }
            ("fetch", _) => return request.complete(channels, packet.fetched),
            _ => {}
        }
        request.complete(channels, &[]);
    }
}

fn log(bench: &Bench<Lender>) -> Vec<&str> {
    bench.runtime.device().log.iter().map(String::as_str).collect()
}

fn ask(guest: &mut GuestEnd, what: &str) {
    assert!(guest.send(&Outgoing::in_band(1, true), &[what.as_bytes()]));
}

/// Every packet that the guest has: completions as `None`, loans by their number.
fn packets(guest: &mut GuestEnd) -> Vec<Option<u32>> {
    let mut all = Vec::new();
    while let Some((header, bytes)) = guest.poll_packet() {
        if header.packet_type == PacketType::COMPLETION {
            all.push(None);
            continue;
        }
        let pages = header.transfer_pages(&bytes, 8).unwrap();
        let loan = header.transaction_id as u32;
        assert_eq!((pages.page_set, pages.ranges[1]), (0xcafe, TransferRange::new(loan * 4096 + 200, 60)));
        assert_eq!((header.payload(&bytes), header.completion_requested()), (&b"rndis-pk"[..], true));
        all.push(Some(loan));
    }
    all
}

#[test]
fn what_is_lent_comes_back_and_may_be_lent_at_once() {
    let mut bench = Bench::new(Lender::new(), 0);
    let mut guest = bench.open(1, 4);
    ask(&mut guest, "lend 2");
    bench.settle();
    assert_eq!(packets(&mut guest), [None, Some(2)]);
    assert!(guest.give_back(2, b"thanks!!"));
    bench.settle();
    assert_eq!(log(&bench), ["open", "packet lend 2", "returned 2 thanks!!"]);
    // What was never lent, or is no number, or comes twice, is nothing.
    for stray in [2, 3, LOANS, u32::MAX] {
        assert!(guest.give_back(stray, &[]));
    }
    assert!(guest.send(&Outgoing::completion(u64::MAX), &[]));
    bench.settle();
    assert_eq!(log(&bench).len(), 3);
    ask(&mut guest, "lend 2");
    bench.settle();
    assert_eq!(packets(&mut guest), [None, Some(2)]);
}

#[test]
fn a_loan_that_is_lent_again_from_its_return_is_visible_in_the_same_turn() {
    let mut bench = Bench::new(Lender { again: true, ..Lender::new() }, 0);
    let mut guest = bench.open(1, 4);
    ask(&mut guest, "lend 0");
    bench.settle();
    packets(&mut guest);
    for _ in 0..1000 {
        assert!(guest.give_back(0, b"x"));
        bench.turn(0);
        assert_eq!(packets(&mut guest), [Some(0)]);
    }
}

#[test]
fn a_device_without_loans_answers_completions_like_everything() {
    let mut bench = Bench::new(Lender::default(), 0);
    let mut guest = bench.open(1, 4);
    guest.give_back(0, b"odd");
    bench.settle();
    assert_eq!(log(&bench), ["open", "packet odd"]);
}

#[test]
fn a_successor_knows_what_the_guest_has() {
    let mut bench = Bench::new(Lender::new(), 0);
    bench.core.has_gpadl(GPADL, SharedMemory::create("buffer", 8192).unwrap());
    let mut guest = bench.open(1, 4);
    for loan in 0..3 {
        ask(&mut guest, &format!("lend {loan}"));
    }
    bench.settle();
    assert_eq!(packets(&mut guest).len(), 6);
    guest.give_back(1, b"one");
    bench.settle();
    guest.give_back(0, b"nobody has read it");
    let core = bench.kill();
    let mut bench = Bench::take_over(core, Lender::new());
    bench.settle();
    let expected = [
        "open",
        "lent 0",
        "lent 2",
        "restore state",
        "resumed",
        "shared 9",
        "returned 0 nobody has read it\0\0\0\0\0\0",
    ];
    assert_eq!(log(&bench), expected);
    // The same in a hand-over.
    bench.quiesce();
    bench.serve(true);
    bench.reopen_all();
    bench.settle();
    assert_eq!(log(&bench)[7..], ["open", "lent 2", "restore state", "resumed", "shared 9"]);
    guest.give_back(2, b"two");
    bench.settle();
    assert_eq!(log(&bench).last(), Some(&"returned 2 two\0\0\0\0\0"));
}

#[test]
fn no_buffer_is_shared_before_it_is_known_what_the_guest_has_on_all_channels() {
    let mut bench = Bench::new(Lender::new(), 0);
    bench.core.has_gpadl(GPADL, SharedMemory::create("buffer", 8192).unwrap());
    let _primary = bench.open(1, 4);
    let mut guest = bench.open_subchannel(2, 1, 4);
    ask(&mut guest, "lend 3");
    bench.settle();
    let mut bench = Bench::take_over(bench.kill(), Lender::new());
    bench.settle();
    let expected = ["open", "resumed", "open", "lent 3", "restore state", "resumed", "shared 9", "shared 9"];
    assert_eq!(log(&bench), expected);
}

#[test]
fn who_finds_no_room_is_told_when_there_is_some() {
    let mut bench = Bench::new(Lender { loans: 256, ..Lender::new() }, 0);
    let mut guest = bench.open(1, 1);
    let channel = bench.runtime.device().channel.unwrap();
    // 4096 bytes, 56 a loan.
    for loan in 0..80 {
        while !guest.send(&Outgoing::in_band(1, false), &[format!("lend {loan}").as_bytes()]) {
            bench.turn(0);
        }
        bench.turn(0);
    }
    bench.settle();
    assert!(!log(&bench).contains(&"room"));
    assert!(!bench.runtime.with_channels(|channels| channels.has_room(channel, 4000)));
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.extend(packets(&mut guest).into_iter().flatten());
        bench.turn(1);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..80).collect::<Vec<_>>());
    assert!(log(&bench).contains(&"room"));
    assert!(bench.runtime.with_channels(|channels| channels.has_room(channel, 4000)));
    assert_eq!(Channels::lend_bytes(2, 8), 56);
    assert_eq!(Channels::completion_bytes(9), 40);
}

#[test]
fn nothing_is_taken_between_a_question_and_its_answer() {
    let mut bench = Bench::new(Lender::new(), 0);
    let mut guest = bench.open(1, 4);
    let mut other = bench.open_subchannel(2, 1, 4);
    ask(&mut guest, "share");
    ask(&mut guest, "after");
    ask(&mut other, "elsewhere");
    let flow = bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    assert_eq!(flow, vsp::Flow::Continue);
    for _ in 0..3 {
        bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    }
    assert_eq!(log(&bench)[2..], ["packet share"]);
    bench.core.has_gpadl(GPADL, SharedMemory::create("buffer", 8192).unwrap());
    bench.settle();
    bench.settle();
    assert_eq!(log(&bench)[2..], ["packet share", "shared 9", "packet after", "packet elsewhere"]);
    ask(&mut guest, "return");
    bench.settle();
    assert!(!bench.core.knows_gpadl(GPADL));
    ask(&mut guest, "share");
    bench.settle();
    assert_eq!(log(&bench).last(), Some(&"not shared 9: there is no such GPADL"));
    // A channel that closes has no questions any more.
    ask(&mut guest, "share");
    bench.runtime.turn(Some(std::time::Duration::ZERO)).unwrap();
    bench.close(1);
    ask(&mut other, "go on");
    bench.settle();
    assert_eq!(log(&bench).last(), Some(&"packet go on"));
}

#[test]
fn an_older_core_is_not_asked() {
    let (mut core, vsp) = FakeCore::new(0);
    core.version = 3;
    let setting =
        vsp::Setting { name: "test".into(), ledger: true, notifier: vsp::notify::Notifier::silent() };
    let mut runtime = vsp::Runtime::new(Lender { wants: 100, ..Lender::new() }, setting).unwrap();
    runtime.greet(vsp).unwrap();
    core.greet(false);
    let mut bench = Bench { core, runtime };
    bench.serve(false);
    let mut guest = bench.core.open(1, 4);
    assert!(matches!(bench.answer(), ToCore::OpenResult { status: 0, .. }));
    ask(&mut guest, "share");
    ask(&mut guest, "after");
    let header = gpa_direct_header(&[(0, 4, &[1])]);
    guest.send(&Outgoing::gpa_direct(1, &header), &[&header, b"fetch me"]);
    bench.settle();
    bench.settle();
    let expected = [
        "open",
        "packet share",
        "not shared 9: this VM's core is too old to share a GPADL",
        "packet after",
        "packet fetch me",
    ];
    assert_eq!(log(&bench), expected);
}

#[test]
fn what_a_packet_names_is_fetched_before_it_is_taken_and_kept_for_a_successor() {
    for (bytes, is_kept) in [(vec![7; 3000], true), (vec![7; 36 << 10], true), (vec![7; 60 << 10], false)] {
        let mut bench = Bench::new(Lender { wants: 100 << 10, ..Lender::new() }, 0);
        let mut guest = bench.open(1, 40);
        assert!(guest.send(&Outgoing::in_band(1, true), &[b"first"]));
        let header = gpa_direct_header(&[(0, 4, &[1])]);
        guest.send(&Outgoing::gpa_direct(1, &header), &[&header, b"fetch me"]);
        let asked = bench.core.answer_fetch(bytes.clone());
        bench.turn(100);
        assert_eq!(asked.join().unwrap(), (1, 32, 100 << 10));
        bench.settle();
        guest.poll().unwrap();
        let (_, payload) = guest.poll().unwrap();
        assert_eq!(payload, bytes);

        // It dies with the request in its hands.
        let mut bench = Bench::new(Holder::default(), 0);
        let mut guest = bench.open(1, 40);
        guest.send(&Outgoing::gpa_direct(1, &header), &[&header, b"fetch me"]);
        let asked = bench.core.answer_fetch(bytes.clone());
        bench.turn(100);
        asked.join().unwrap();
        assert_eq!(bench.runtime.device().0.len(), 1);
        let mut bench = Bench::take_over(bench.kill(), Lender { wants: 100 << 10, ..Lender::new() });
        let (_, payload) = bench.wait(&mut guest);
        assert_eq!(payload, if is_kept { bytes } else { Vec::new() });
    }
}

/// Keeps all that it is given.
#[derive(Debug, Default)]
struct Holder(Vec<Request>);

impl Device for Holder {
    fn offer(&self) -> Offer {
        Lender::new().offer()
    }

    fn loans(&self) -> u32 {
        LOANS
    }

    fn fetches(&self, _: &PacketHeader, _: &[u8]) -> u32 {
        100 << 10
    }

    fn packet(&mut self, _: Packet<'_>, request: Request, _: &mut Channels) {
        self.0.push(request);
    }
}
