//! What a guest sends to a NIC, and what comes for it from the network.

use std::ops::RangeInclusive;

use vsp_net::hash::{HashTypes, KEY_LEN, Toeplitz, toeplitz};
use vsp_net::headers::Layout;
use vsp_net::nvsp::{GuestMessage, HostMessage, Version};
use vsp_net::offload::{HEADERS_LEN, Headers, Sum, VnetHeader, receive, transmit};
use vsp_net::oid::{self, Config, Offloads, State};
use vsp_net::rndis::control::Message;
use vsp_net::rndis::frame::{Frames, MAX_FRAMES, Received};
use vsp_net::rndis::info::{LsoVersion, Transport};
use vsp_net::rndis::{Lso, Reply, TransmitChecksum, TransmitInfo, Vlan};

use crate::Script;

const QUEUES: u16 = 4;
const VERSIONS: [LsoVersion; 4] = [LsoVersion::V1, LsoVersion::V2Ip4, LsoVersion::V2Ip6, LsoVersion::V2Ip4];
const MTU: RangeInclusive<u32> = 68..=9000;

/// A packet's payload, from either side: what is understood is said again in the same way.
pub fn nvsp(data: &[u8]) {
    if let Ok(message) = GuestMessage::parse(data) {
        assert_eq!(GuestMessage::parse(&message.encode()), Ok(message));
        if let GuestMessage::Init { min, max } = message
            && let Ok(version) = Version::choose(min, max)
        {
            assert!((min..=max).contains(&version.wire()));
        }
    }
    if let Ok(message) = HostMessage::parse(data) {
        for version in Version::ALL {
            let bytes = message.encode(version);
            assert!(bytes.len() >= version.packet_len());
            assert_eq!(HostMessage::parse(&bytes), Ok(message));
        }
    }
}

/// A byte: 0 for frames in what follows, 1 for one from the host, otherwise for control messages, each behind its length (16 bits).
pub fn rndis(data: &[u8]) {
    let mut script = Script::new(data);
    match script.byte() {
        Some(0) => frames(script.rest()),
        Some(1) => from_host(script.rest()),
        Some(offloads) => control(offloads, script.rest()),
        None => {}
    }
}

/// Frames are where they are said to be, in order, and not endless.
fn frames(data: &[u8]) {
    let copy = |at: usize, into: &mut [u8]| match data.get(at..at + into.len()) {
        Some(from) => {
            into.copy_from_slice(from);
            true
        }
        None => false,
    };
    let (mut end, mut count) = (0, 0);
    for frame in Frames::new(data.len(), copy) {
        count += 1;
        let Ok(frame) = frame else { break };
        assert!(frame.message.start == end && frame.message.end <= data.len());
        assert!(frame.message.start < frame.data.start && frame.data.start <= frame.data.end);
        assert!(frame.data.end <= frame.message.end);
        end = frame.message.end;
    }
    assert!(count <= MAX_FRAMES + 1);
}

fn from_host(data: &[u8]) {
    if let Ok(received) = Received::parse(data) {
        assert!(received.data.len() <= data.len());
    }
    if let Ok(reply) = Reply::parse(data) {
        let mut again = Vec::new();
        reply.encode(&mut again);
        assert_eq!(Reply::parse(&again), Ok(reply));
    }
}

/// Whatever is set, the state stays one that can be, and a successor gets the same.
fn control(offloads: u8, data: &[u8]) {
    let config = Config {
        mac: [2, 0, 0, 0, 0, 1],
        mac_locked: offloads & 4 != 0,
        mtu: 9000,
        speed: 10_000_000_000,
        queues: QUEUES,
        offloads: if offloads & 2 == 0 { Offloads::TAP } else { Offloads::NONE },
        name: "net0".into(),
    };
    let mut state = State::new(config.clone());
    state.set_ndis_version(6, (offloads >> 3).into());
    let (mut script, mut out) = (Script::new(data), Vec::new());
    while let Some(len) = script.word() {
        let rest = script.rest();
        let (message, rest) = rest.split_at(rest.len().min(len.into()));
        script = Script::new(rest);
        let Ok(message) = Message::parse(message) else { continue };
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(Message::parse(&again), Ok(message));
        match message {
            Message::Initialize { max_transfer, .. } => state.set_config_mtu(max_transfer),
            Message::Halt { .. } => state.halt(),
            Message::Reset => state.reopen(),
            Message::Query { oid, info, .. } => {
                let answer = oid::query(&state, oid, info, &mut out);
                assert!(if answer.is_ok() { out.len() <= 1024 } else { out.is_empty() });
            }
            Message::Set { oid, info, .. } => {
                let before = state.clone();
                if oid::set(&mut state, oid, info).is_err() {
                    assert_eq!(state, before);
                }
            }
            Message::KeepAlive { .. } => {}
        }
        check(&state, &config);
    }
}

fn check(state: &State, config: &Config) {
    assert!(MTU.contains(&state.mtu) && state.mac[0] & 1 == 0);
    assert!(config.offloads.contains(state.enabled));
    assert!(!config.mac_locked || state.mac == config.mac);
    if let Some(rss) = &state.rss {
        assert!(rss.table().iter().all(|channel| *channel < QUEUES));
        assert!(rss.channel(u32::MAX) < QUEUES);
    }
    let mut saved = Vec::new();
    state.save(&mut saved);
    assert!(saved.len() <= 1024);
    let mut successor = State::new(config.clone());
    assert_eq!(successor.restore(&saved), Ok(()));
    assert_eq!(&successor, state);
}

/// A byte: even for a frame of a guest's, odd for one that comes for it. What is said about it, then the frame.
pub fn net_offload(data: &[u8]) {
    let mut script = Script::new(data);
    let (Some(which), Some(first), Some(second)) = (script.byte(), script.dword(), script.dword()) else {
        return;
    };
    let Some(longer) = script.word() else { return };
    let frame = script.rest();
    layout(first, frame);
    // The bytes behind the headers need not be there.
    let frame_len = frame.len() + if frame.len() >= HEADERS_LEN { usize::from(longer) } else { 0 };
    if which & 1 == 0 {
        from_guest(which, [first, second], frame, frame_len);
    } else {
        let [flags, gso_type, low, high] = first.to_le_bytes();
        let vnet = VnetHeader {
            flags,
            gso_type,
            hdr_len: longer,
            gso_size: u16::from_le_bytes([low, high]),
            csum_start: second as u16,
            csum_offset: (second >> 16) as u16,
        };
        for_guest(&vnet, &frame[..frame.len().min(HEADERS_LEN)], frame_len);
    }
}

fn from_guest(which: u8, [first, second]: [u32; 2], frame: &[u8], frame_len: usize) {
    let info = TransmitInfo {
        checksum: (which & 2 != 0).then_some(TransmitChecksum {
            transport: [None, Some(Transport::Tcp), Some(Transport::Udp), None][first as usize & 3],
            ip_header: first & 4 != 0,
            offset: (first >> 16) as u16,
        }),
        lso: (which & 4 != 0).then_some(Lso {
            mss: second & 0xf_ffff,
            offset: (second >> 20) as u16,
            version: VERSIONS[(first >> 3 & 3) as usize],
        }),
        vlan: (which & 8 != 0).then_some(Vlan::from_tci(first as u16)),
        hash: None,
    };
    let offered = if which & 16 == 0 { Offloads::TAP } else { Offloads::from_bits_truncate(second as u16) };
    let mut headers = Headers::copy(frame_len, |into| into.copy_from_slice(&frame[..into.len()]));
    let copied = headers.copied();
    assert_eq!(copied, frame_len.min(HEADERS_LEN));
    let Ok(vnet) = transmit(&info, &mut headers, frame_len, offered) else { return };
    let (sent, tag) = (headers.as_slice(), if info.vlan.is_some() { 4 } else { 0 });
    assert_eq!((sent.len(), headers.copied()), (copied + tag, copied));
    let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    if vnet.flags == 0 {
        assert_eq!(vnet, VnetHeader::default());
        return;
    }
    assert_eq!(vnet.flags, VnetHeader::NEEDS_CSUM);
    assert!(start >= 34 + tag && matches!(offset, 6 | 16) && start + offset + 2 <= sent.len());
    if vnet.gso_type == VnetHeader::GSO_NONE {
        assert!(info.lso.is_none() && vnet.gso_size == 0 && vnet.hdr_len == 0);
        return;
    }
    assert!(info.lso.is_some() && vnet.gso_size >= 32 && vnet.gso_size < 0xffff);
    assert!(usize::from(vnet.hdr_len) <= sent.len() && usize::from(vnet.hdr_len) >= start + 20);
    // The kernel finds the same headers, with lengths and checksums that are right.
    if let Some(layout) = Layout::of(sent) {
        assert_eq!(layout.l4, start);
        let len = |at: usize| usize::from(u16::from_be_bytes([sent[at], sent[at + 1]]));
        match vnet.gso_type & !VnetHeader::GSO_ECN {
            VnetHeader::GSO_TCPV4 => {
                assert_eq!(len(layout.l3 + 2), frame_len + tag - layout.l3);
                assert_eq!(Sum::new().add(&sent[layout.l3..layout.l4]).finish(), [0, 0]);
            }
            _ => assert_eq!(len(layout.l3 + 4), frame_len + tag - layout.l3 - 40),
        }
    }
}

fn for_guest(vnet: &VnetHeader, head: &[u8], frame_len: usize) {
    for enabled in [Offloads::TAP, Offloads::NONE] {
        let found = receive(vnet, head, frame_len, enabled);
        assert_eq!(found.strip, found.info.vlan.is_some());
        assert!(!found.strip || head.len() >= 18);
        if let Some(complete) = found.complete {
            assert!(complete.start <= complete.at && complete.at + 2 <= frame_len);
        }
        if vnet.flags == 0 && enabled.is_empty() {
            assert!(found.complete.is_none() && found.info.checksum.is_none());
        }
    }
}

fn layout(types: u32, frame: &[u8]) {
    let Some(layout) = Layout::of(frame) else { return };
    assert!((14..=22).contains(&layout.l3) && layout.l4 >= layout.l3 + 20 && layout.l4 <= frame.len());
    let key: [u8; KEY_LEN] = std::array::from_fn(|at| frame.get(at).copied().unwrap_or(0x5a));
    let ready = Toeplitz::new(&key);
    let start = &frame[..frame.len().min(36)];
    assert_eq!(ready.hash(start.iter().copied()), toeplitz(&key, start));
    ready.frame(&layout, frame, HashTypes::from_bits_truncate(types));
}
