//! Writes the seed corpus: a few well-formed inputs for each target, from which the fuzzer starts.
//!
//! Run it in `fuzz/` with instrumentation off: `RUSTFLAGS= cargo run --example seeds`.

use std::error::Error;
use std::fs;
use std::path::Path;

use vmbus::gpadl;
use vmbus::guid::class;
use vmbus::message::{
    GpadlCreated, GuestMessage, HostMessage, InitiateContact, ModifyChannel, Offer, OpenChannel, OpenResult,
    TlConnect, VersionResponse,
};
use vmbus::packet::{gpa_direct_header, page_buffer_header, transfer_pages_header};
use vmbus::protocol::Version;

/// Writes one target's seeds as numbered files.
fn write(target: &str, seeds: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed)?;
    }
    println!("{target}: {} seeds", seeds.len());
    Ok(())
}

fn channel_messages() -> Vec<Vec<u8>> {
    let open = OpenChannel {
        relid: 1,
        open_id: 1,
        ring_gpadl: 0xe1e10,
        target_vp: 0,
        downstream_page_offset: 32,
        user_data: [0; 120],
    };
    let guest = [
        GuestMessage::InitiateContact(InitiateContact::new(Version::V5_3, 0)),
        GuestMessage::InitiateContact(InitiateContact::new(Version::WIN8, 0)),
        GuestMessage::RequestOffers,
        GuestMessage::OpenChannel(open),
        GuestMessage::CloseChannel(1),
        GuestMessage::GpadlTeardown { relid: 1, gpadl: 0xe1e10 },
        GuestMessage::RelidReleased(1),
        GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 1 }),
        GuestMessage::Unload,
        GuestMessage::TlConnect(TlConnect { endpoint: class::ECHO, service: class::SCSI }),
    ];
    let host = [
        HostMessage::Offer(Offer::new(class::SCSI, class::ECHO, 1, 0x10001)),
        HostMessage::RescindOffer(1),
        HostMessage::AllOffersDelivered,
        HostMessage::OpenResult(OpenResult { relid: 1, open_id: 1, status: 0 }),
        HostMessage::GpadlCreated(GpadlCreated { relid: 1, gpadl: 0xe1e10, status: 0 }),
        HostMessage::GpadlTorndown(0xe1e10),
        HostMessage::VersionResponse(VersionResponse::accepted(7)),
        HostMessage::UnloadResponse,
        HostMessage::ModifyChannelResponse { relid: 1, status: 0 },
    ];
    let guest = guest.iter().map(|message| message.encode().to_vec());
    guest.chain(host.iter().map(|message| message.encode().to_vec())).chain(gpadl_messages(64)).collect()
}

/// `HVCALL_RETARGET_INTERRUPT` with a mask of processors, with a set of them, and with one that is cut short.
fn hypercalls() -> Vec<Vec<u8>> {
    let call = |variable: u64, flags: u32, target: &[u64]| {
        let mut bytes = Vec::new();
        let longs = |bytes: &mut Vec<u8>, longs: &[u64]| {
            longs.iter().for_each(|long| bytes.extend(long.to_le_bytes()));
        };
        longs(&mut bytes, &[0x7e | variable << 17, 0, u64::MAX, 0x9102_0300]);
        longs(&mut bytes, &[1, 0xfee0_0000 | 7 << 32, 0, 0x41 | u64::from(flags) << 32]);
        longs(&mut bytes, target);
        bytes
    };
    vec![
        call(0, 0, &[6]),
        call(2, 2, &[0, 1, 6]),
        call(3, 2, &[0, 3, 0, 1]),
        call(0, 2, &[1]),
        call(1, 2, &[0, 9]),
    ]
}

fn gpadl_messages(pages: u64) -> Vec<Vec<u8>> {
    let pfns: Vec<u64> = (0x1000..0x1000 + pages).collect();
    gpadl::messages(1, 0xe1e10, &pfns).iter().map(|message| message.to_vec()).collect()
}

/// Strings as [`bulkhead_fuzz::Script`] reads them.
fn strings(strings: &[Vec<u8>]) -> Vec<u8> {
    strings.iter().flat_map(|string| [&[string.len() as u8][..], string].concat()).collect()
}

fn descriptor(packet_type: u16, type_header: &[u8], payload: &[u8]) -> Vec<u8> {
    let len8 = (16 + type_header.len() + payload.len()).div_ceil(8) as u16;
    let data8 = 2 + type_header.len() as u16 / 8;
    let words = [packet_type, data8, len8, 1, 7, 0, 0, 0];
    let mut packet: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    packet.extend_from_slice(type_header);
    packet.extend_from_slice(payload);
    packet.resize(usize::from(len8) * 8 + 8, 0);
    packet
}

/// Type headers of packets with guest pages, by packet type.
fn type_headers() -> Vec<(u16, Vec<u8>)> {
    vec![
        (6, Vec::new()),
        (7, transfer_pages_header(0xcafe, &[(0, 100), (1024, 300)])),
        (9, gpa_direct_header(&[(0, 8192, &[16, 17])])),
        (9, gpa_direct_header(&[(512, 512, &[16]), (4000, 200, &[20, 22])])),
        (9, page_buffer_header(&[(0, 4096, 16), (100, 200, 17)])),
        (11, Vec::new()),
    ]
}

/// Ring contents whose write index (step 1) is at the end of the last packet.
fn rings() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut seeds = Vec::new();
    let ring = |data: &[u8]| {
        let step = [&[1u8][..], &((data.len() / 8) as u16).to_le_bytes()].concat();
        [&[6u8][..], &[2, 16, 0], &step, data].concat()
    };
    for (packet_type, header) in type_headers() {
        let packet = descriptor(packet_type, &header, &[0x5a; 64]);
        seeds.push(ring(&packet));
        all.extend_from_slice(&packet);
    }
    seeds.push(ring(&all));
    seeds
}

fn ipc_messages() -> Vec<Vec<u8>> {
    [
        r#"{"Hello":{"versions":{"min":2,"max":2},"ledger":1048576,"build":"1.0","device":"disk0","offer":{"class":"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f","mmio_megabytes":0,"flags":{"named_pipe":false},"user_defined":[1,2],"max_subchannels":3}}}"#,
        r#"{"OpenResult":{"channel":1,"status":0}}"#,
        r#"{"Closed":{"channel":1}}"#,
        r#"{"Welcome":{"version":1,"vm":"debian","vps":2,"ram":[{"gpa":0,"len":4096,"offset":0}]}}"#,
        r#"{"Refused":{"reason":"no such device"}}"#,
        r#"{"ChannelOpen":{"channel":1,"subchannel":0,"ring":{"pages":64,"to_host_pages":32},"target_vp":0,"flag":1,"user_data":[0,1]}}"#,
        r#"{"ChannelClose":{"channel":1}}"#,
        r#"{"Retarget":{"channel":1,"target_vp":1}}"#,
        r#"{"Serving":{}}"#,
        r#"{"Quiesced":{}}"#,
        r#"{"OfferSubchannels":{"count":3}}"#,
        r#"{"Operator":{"versions":{"min":2,"max":2}}}"#,
        r#"{"Serve":{"predecessor":true}}"#,
        r#"{"Swap":{"device":"disk0","wait_ms":500}}"#,
        r#"{"Devices":[{"name":"disk0","serving":true,"exposed_bytes":4096}]}"#,
        r#"{"Swapped":{"device":"disk0","pause_us":900}}"#,
        r#"{"CutOff":{"device":"disk0","reason":"it did not answer","had_channels":true}}"#,
        r#"{"MapMemory":{"gpa":4160749568,"bytes":33554432}}"#,
        r#"{"MemoryMapped":{"gpa":4160749568,"result":{"Err":"no"}}}"#,
        r#"{"Memory":{"gpa":4160749568,"bytes":33554432}}"#,
        r#"{"UnmapMemory":{"gpa":4160749568}}"#,
        r#"{"Keep":{"key":1,"note":"irq 0-7"}}"#,
        r#"{"Kept":{"key":1}}"#,
        r#"{"MapRegion":{"gpa":4160749568,"bytes":8192,"offset":1099511627776}}"#,
        r#"{"Region":{"gpa":4160749568,"bytes":8192,"offset":0}}"#,
        r#"{"Trap":{"gpa":4160749568,"bytes":4096}}"#,
        r#"{"Trapped":{"gpa":4160749568,"result":{"Ok":null}}}"#,
        r#"{"Access":{"id":7,"gpa":4160749572,"bytes":4,"write":1}}"#,
        r#"{"AccessDone":{"id":7,"value":18446744073709551615}}"#,
        r#"{"Interrupt":{"id":3,"vector":64,"vp":1}}"#,
        r#"{"InterruptReady":{"id":3,"result":{"Err":"no"}}}"#,
        r#"{"DeviceAdd":{"slot":{"name":"pci0","instance":"b01ce4ad-0000-4000-8000-000000000001","guest_ram":true,"passthrough":true}}}"#,
        r#"{"DeviceRemove":{"device":"pci0","force":true}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Lives of a connection, as [`bulkhead_fuzz::bus`] reads them.
fn bus_scripts() -> Vec<Vec<u8>> {
    let open = [&[0u8, 0, 0, 1][..], &[2, 1, 5, 10, 8], &[3, 1, 5, 0, 4], &[9, 1, 0]].concat();
    let close = [&[4u8, 1][..], &[10, 1], &[5, 1, 5]].concat();
    vec![
        [&open[..], &[6, 1, 1], &close, &[8]].concat(),
        // A crash kernel comes up while a channel is open.
        [&open[..], &[0, 3, 1, 10, 1], &open].concat(),
        // Teardown while open, refusal, reset, rescind.
        [&open[..], &[5, 1, 5, 4, 1, 10, 1], &[2, 2, 6, 30, 40, 3, 2, 6, 1, 20, 9, 2, 1, 11, 12, 1, 7, 1]]
            .concat(),
        // Sub-channels: one is opened, then the primary channel is closed over them.
        [&open[..], &[13, 1, 2, 2, 4, 6, 40, 8, 3, 4, 6, 0, 4, 9, 4, 0, 4, 1, 10, 4, 10, 1, 7, 4, 13, 1, 3]]
            .concat(),
        [&[0u8, 7, 0, 14, 8][..], &GuestMessage::RequestOffers.encode(), &[12, 3, 7, 3]].concat(),
    ]
}

/// Ledgers, as [`bulkhead_fuzz::ledger`] reads them: steps of kind, place, value, then packets.
fn ledgers() -> Vec<Vec<u8>> {
    let packets: Vec<u8> = (0..3).flat_map(|_| descriptor(6, &[], &[0x5a; 16])).collect();
    let write_index = (packets.len() as u16).to_le_bytes();
    let script = |steps: &[[u8; 4]]| [&strings(&[steps.concat()])[..], &packets].concat();
    let arrived = [0, 0, write_index[0], write_index[1]];
    let made = [2, 0, 0, 0];
    vec![
        // A new channel with three packets.
        script(&[arrived]),
        // A request that is void, one that was taken, one with an outcome.
        script(&[made, arrived, [6, 1, 3, 0], [6, 0, 0, 0], [8, 0, 0, 0]]),
        // Completions that are visible and that are not, with states.
        script(&[
            made,
            [9, 1, 1, 0],
            [6, 1, 0, 0],
            [7, 1, 0, 0],
            [5, 8, 0, 0],
            [6, 5, 0, 0],
            [7, 5, 64, 0],
            [5, 8, 0, 0],
        ]),
        script(&[made, [9, 1, 1, 0], [6, 0, 1, 0], [7, 1, 0, 0], [5, 12, 1, 0]]),
        // Crashes, with a suspect and without.
        script(&[made, arrived, [6, 1, 0, 0], [3, 4, 1, 0], [4, 4, 11, 0]]),
        script(&[made, arrived, [6, 1, 0, 0], [6, 2, 0, 0], [4, 4, 11, 0]]),
        script(&[made, arrived, [4, 8, 5, 0], [4, 2, 5, 0]]),
        // Damage.
        script(&[made, arrived, [1, 3, 9, 0]]),
        script(&[made, arrived, [3, 1, 9, 9], [3, 2, 9, 9]]),
    ]
}

/// Commands that Linux sends to a disk.
fn commands() -> Vec<Vec<u8>> {
    let mut write_same = vec![0; 16];
    (write_same[0], write_same[1], write_same[13]) = (0x93, 0x08, 8);
    let mut synchronize = vec![0; 10];
    synchronize[0] = 0x35;
    vec![
        vec![0x00, 0, 0, 0, 0, 0],
        vec![0x03, 0, 0, 0, 18, 0],
        vec![0x12, 0, 0, 0, 36, 0],
        vec![0x12, 1, 0x80, 0, 255, 0],
        vec![0x12, 1, 0xb0, 0, 64, 0],
        vec![0x1a, 0, 0x3f, 0, 192, 0],
        vec![0x5a, 0, 0x08, 0, 0, 0, 0, 0, 192, 0],
        vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0],
        vec![0x2a, 8, 0, 0, 0, 9, 0, 0, 8, 0],
        vec![0x88, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0],
        vec![0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0],
        vec![0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        vec![0xa0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0],
        vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        write_same,
        synchronize,
    ]
}

fn packets_to_storage() -> Vec<Vec<u8>> {
    use vsp_storage::wire::{Address, Direction, command, operation, simple};
    let here = Address { path: 0, target: 0, lun: 0 };
    let simple = [
        simple(operation::BEGIN_INITIALIZATION, 0),
        simple(operation::QUERY_PROTOCOL_VERSION, 0x0602),
        simple(operation::CREATE_SUB_CHANNELS, 1),
    ];
    let commands = commands();
    let commands = commands.iter().map(|cdb| command(here, Direction::FromDevice, cdb, 4096));
    simple.into_iter().chain(commands).map(|packet| [&[8u8][..], &packet].concat()).collect()
}

/// Lives of a guest with a disk, as [`bulkhead_fuzz::device`] reads them.
fn device_scripts() -> Vec<Vec<u8>> {
    let command = |lun: u8, memory: u8, cdb: &[u8], len: u32, pages: &[u8]| {
        [&[0, lun, memory][..], &strings(&[cdb.to_vec()]), &len.to_le_bytes(), &strings(&[pages.to_vec()])]
            .concat()
    };
    let turn = vec![8u8];
    // Whatever Linux sends, one command after the other; data goes to and from four pages.
    let usual: Vec<u8> = commands()
        .iter()
        .flat_map(|cdb| [command(0, 0, cdb, 4096, &[9, 10, 11, 12]), turn.clone()].concat())
        .collect();
    let write = [0x2a, 0, 0, 0, 0, 9, 0, 0, 8, 0];
    let read = [0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0];
    let data = [&[5u8, 9, 0, 0][..], &strings(&[vec![0x5a; 100]])].concat();
    let written =
        [&data[..], &command(0, 1, &write, 4096, &[9]), &turn, &command(0, 0, &read, 4096, &[20])].concat();
    let list = vsp_storage::scsi::unmap::list(&[(8, 8), (100, 4)]);
    let unmap = [
        &[5u8, 3, 0, 0][..],
        &strings(&[list.clone()]),
        &command(0, 1, &[0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list.len() as u32, &[3]),
    ]
    .concat();
    let mut compare = [0; 16];
    (compare[0], compare[9], compare[13]) = (0x89, 9, 1);
    let mut verify = [0; 10];
    (verify[0], verify[1], verify[8]) = (0x2f, 0x02, 8);
    // Parameter lists of PERSISTENT RESERVE OUT are zeroes with a key in them.
    let reserve = [
        &[5u8, 7, 8, 0][..],
        &strings(&[vec![0, 0, 0, 0, 0, 0, 0, 7]]),
        &command(0, 1, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24, &[7]),
        &turn,
        &[5, 7, 0, 0],
        &strings(&[vec![0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]]),
        &command(0, 1, &[0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0], 24, &[7]),
        &turn,
        &command(0, 0, &[0x5e, 1, 0, 0, 0, 0, 0, 0, 64, 0], 64, &[7]),
    ]
    .concat();
    let subchannels = [&[10u8, 13, 2, 0][..], &turn, &[13, 1, 13, 2]].concat();
    let swap = vec![15u8];
    vec![
        usual,
        [&written[..], &swap, &command(0, 0, &read, 4096, &[21, 22])].concat(),
        [&unmap[..], &turn, &command(5, 1, &compare, 1024, &[9]), &command(0, 1, &verify, 4096, &[9])]
            .concat(),
        [&reserve[..], &swap, &command(0, 0, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], 64, &[7])].concat(),
        [&subchannels[..], &command(0, 1, &write, 4096, &[0x10]), &[12 + 16], &swap, &turn].concat(),
        // Sixteen writes in ranges of one page, some not in RAM; a reset among them.
        [&command(0, 0x11, &write, 4096, &[9, 0xf8]).repeat(16)[..], &[10, 6, 0, 0], &turn].concat(),
        // A ring that is broken, opened anew.
        [&[11u8, 3, 0xf1, 0xff, 0][..], &turn, &[12, 13, 0, 14], &written].concat(),
    ]
}

/// What a driver and a device say to each other before frames go, and then.
fn nvsp_messages() -> Vec<Vec<u8>> {
    use vsp_net::nvsp::{
        Capabilities, ChannelType, GuestMessage, HostMessage, ReceiveSection, RndisPacket, Section, Status,
        Version,
    };
    let section = Some(Section { index: 3, size: 1500 });
    let guest = [
        GuestMessage::Init { min: 0x6_0001, max: 0x6_0001 },
        GuestMessage::NdisConfig { mtu: 1514, capabilities: Capabilities::IEEE8021Q | Capabilities::RSC },
        GuestMessage::NdisVersion { major: 6, minor: 30 },
        GuestMessage::SendReceiveBuffer { gpadl: 0xe1e10, id: 0xcafe },
        GuestMessage::SendSendBuffer { gpadl: 0xe1e11, id: 0 },
        GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Control, section: None }),
        GuestMessage::RndisPacket(RndisPacket { channel: ChannelType::Data, section }),
        GuestMessage::RndisPacketComplete { status: Status::Success },
        GuestMessage::Subchannel { operation: 1, count: 3 },
        GuestMessage::SwitchDataPath { active: 1 },
        GuestMessage::RevokeReceiveBuffer { id: 0xcafe },
        GuestMessage::RevokeSendBuffer { id: 0 },
    ];
    let status = Status::Success;
    let section = Some(ReceiveSection { offset: 0, len: 0x2_0000, count: 127, end: 0xfe_0000 });
    let host = [
        HostMessage::InitComplete { status },
        HostMessage::ReceiveBufferComplete { status, section },
        HostMessage::SendBufferComplete { status, section_size: 66_048 },
        HostMessage::RndisPacket { channel: ChannelType::Data },
        HostMessage::RndisPacketComplete { status },
        HostMessage::SubchannelComplete { status, count: 3 },
        HostMessage::IndirectionTable(std::array::from_fn(|entry| entry as u32 % 4)),
    ];
    let guest = guest.iter().map(|message| message.encode().to_vec());
    guest.chain(host.iter().map(|message| message.encode(Version::V61).to_vec())).collect()
}

/// A frame with TCP or UDP over IPv4 or IPv6, and `len` bytes behind the IP header.
fn frame(ip6: bool, protocol: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if ip6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, len as u8, protocol, 64]);
        frame.extend_from_slice(&[0xfd; 32]);
    } else {
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 20 + len as u8, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let transport = frame.len();
    frame.resize(transport + len, 0x5a);
    frame[transport + 12] = 0x50;
    frame
}

/// Inputs as [`bulkhead_fuzz::rndis`] reads them.
fn rndis_messages() -> Vec<Vec<u8>> {
    use vsp_net::oid::number;
    use vsp_net::rndis::control::Message;
    use vsp_net::rndis::frame::{compose, header};
    use vsp_net::rndis::info::{LsoVersion, Transport};
    use vsp_net::rndis::{
        Indication, Lso, ReceiveChecksum, ReceiveInfo, Reply, RndisStatus, TransmitChecksum, TransmitInfo,
        Vlan,
    };

    let vlan = Some(Vlan { priority: 1, cfi: false, id: 42 });
    let checksum = Some(TransmitChecksum { transport: Some(Transport::Tcp), ip_header: false, offset: 34 });
    let lso = Some(Lso { mss: 1448, offset: 34, version: LsoVersion::V2Ip4 });
    let infos = [
        TransmitInfo::default(),
        TransmitInfo { checksum, ..TransmitInfo::default() },
        TransmitInfo { checksum: None, lso, vlan, hash: Some(7) },
    ];
    let mut batch = vec![0];
    let mut seeds = Vec::new();
    for info in infos {
        let data = frame(false, 6, 42);
        let mut message = Vec::new();
        compose(&info, data.len(), &mut message);
        message.extend_from_slice(&data);
        message.resize(message.len().next_multiple_of(8), 0);
        let len = message.len() as u32;
        message[4..8].copy_from_slice(&len.to_le_bytes());
        seeds.push([&[0][..], &message].concat());
        batch.extend_from_slice(&message);
    }
    seeds.push(batch);

    let info = ReceiveInfo { checksum: Some(ReceiveChecksum::TCP_SUCCEEDED), vlan, hash: Some(1) };
    seeds.push([&[1][..], &header(60, &info), &[0x5a; 60]].concat());
    let (id, status) = (7, RndisStatus::SUCCESS);
    for reply in [
        Reply::InitializeComplete { id, status, max_packets: 8, max_transfer: 0x1_0000, alignment_shift: 3 },
        Reply::QueryComplete { id, status, info: &[1, 2, 3, 4] },
        Reply::SetComplete { id, status },
        Reply::ResetComplete { status },
        Reply::KeepAliveComplete { id, status },
        Reply::Indicate(Indication::Connect),
        Reply::Indicate(Indication::LinkSpeed(100_000_000)),
    ] {
        let mut bytes = vec![1];
        reply.encode(&mut bytes);
        seeds.push(bytes);
    }

    // Control messages in the order of Linux; all there are to ask; each with something to set.
    let script = |messages: &[Message<'_>]| {
        let mut all = vec![30 << 3];
        for message in messages {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            all.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
            all.extend_from_slice(&bytes);
        }
        all
    };
    let query = |oid| Message::Query { id, oid, info: &[] };
    let offload = [&[0x80, 3, 28, 0, 1, 4, 4, 4, 4, 0, 0, 2, 2][..], &[0; 9], &[2, 2, 0, 0, 0, 0]].concat();
    let mut rss = vec![0x89, 2, 40, 0, 0, 0, 0, 0];
    for word in [0x1701u32, 8, 40, 40, 48, 0, 0, 0, 0, 3] {
        rss.extend_from_slice(&word.to_le_bytes());
    }
    rss.extend_from_slice(&[7; 40]);
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let parameter = |name: &str, value: &str| {
        let (name, value) = (utf16(name), utf16(value));
        let words = [20, name.len() as u32, 2, 20 + name.len() as u32, value.len() as u32];
        [words.map(u32::to_le_bytes).as_flattened(), &name, &value].concat()
    };
    let (address, word) = (parameter("NetworkAddress", "020000000002"), parameter("*LsoV2IPv4", "0"));
    let set = |oid, info| Message::Set { id, oid, info };
    let sets = [
        set(number::TCP_OFFLOAD_PARAMETERS, &offload[..]),
        set(number::GEN_RECEIVE_SCALE_PARAMETERS, &rss),
        set(number::GEN_CURRENT_PACKET_FILTER, &[0xd, 0, 0, 0]),
        set(number::GEN_RNDIS_CONFIG_PARAMETER, &address),
        set(number::GEN_RNDIS_CONFIG_PARAMETER, &word),
        set(number::MULTICAST_LIST, &[1, 0, 0x5e, 0, 0, 1, 1, 0, 0x5e, 0, 0, 2]),
        set(number::ADD_MULTICAST_ADDRESS, &[1, 0, 0x5e, 0, 0, 3]),
        set(number::DELETE_MULTICAST_ADDRESS, &[1, 0, 0x5e, 0, 0, 1]),
        set(number::CURRENT_ADDRESS, &[2, 0, 0, 0, 0, 3]),
    ];
    let capabilities =
        Message::Query { id, oid: number::TCP_OFFLOAD_HARDWARE_CAPABILITIES, info: &[0xa7, 3, 156, 0] };
    let linux = [
        Message::Initialize { id: 1, major: 1, minor: 0, max_transfer: 0x4000 },
        query(number::GEN_MAXIMUM_FRAME_SIZE),
        query(number::PERMANENT_ADDRESS),
        query(number::GEN_FRIENDLY_NAME),
        capabilities,
        sets[0],
        query(number::GEN_MEDIA_CONNECT_STATUS),
        query(number::GEN_LINK_SPEED),
        query(number::GEN_RECEIVE_SCALE_CAPABILITIES),
        sets[1],
        sets[2],
        Message::KeepAlive { id: 2 },
        Message::Halt { id: 3 },
    ];
    seeds.push(script(&linux));
    seeds.push(script(&sets));
    let asks = [
        number::GEN_SUPPORTED_LIST,
        number::GEN_LINK_STATE,
        number::GEN_STATISTICS,
        number::GEN_XMIT_OK,
        number::GEN_BYTES_RCV,
        number::OFFLOAD_ENCAPSULATION,
        number::MULTICAST_LIST,
    ];
    seeds.push(script(&asks.map(query)));
    seeds.extend(sets.map(|message| script(&[message])));
    seeds
}

/// What viewers say, as [`bulkhead_fuzz::rfb`] reads it.
fn rfb_sessions() -> Vec<Vec<u8>> {
    let session = |how: u8, pieces: &[&[u8]]| {
        let mut all = vec![how];
        for piece in pieces {
            all.push(piece.len() as u8);
            all.extend_from_slice(piece);
        }
        all
    };
    let encodings = |list: &[i32]| {
        let mut message = vec![2, 0, 0, list.len() as u8];
        list.iter().for_each(|number| message.extend_from_slice(&number.to_be_bytes()));
        message
    };
    let everything: &[u8] = &[3, 0, 0, 0, 0, 0, 0, 130, 0, 70];
    let changes: &[u8] = &[3, 1, 0, 0, 0, 0, 0, 130, 0, 70];
    let rgb565: &[u8] = &[0, 0, 0, 0, 16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0];
    let rgb332: &[u8] = &[0, 0, 0, 0, 8, 8, 0, 1, 0, 7, 0, 7, 0, 3, 0, 3, 6, 0, 0, 0];
    let input: &[&[u8]] = &[
        &[4, 1, 0, 0, 0, 0, 0, 0x41],
        &[4, 0, 0, 0, 0, 0, 0, 0x61],
        &[255, 0, 0, 1, 0, 0, 0, 0x40, 0, 0, 0, 0x9d],
        &[5, 9, 0, 100, 0, 50],
        &[6, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3],
        &[248, 0, 0, 0, 0x80, 0, 0, 3, 2, 7, 7],
        &[251, 0, 4, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0, 0],
    ];
    let looks = |list: &[i32]| {
        session(0, &[&encodings(list), everything, changes, rgb565, changes, rgb332, everything])
    };
    vec![
        session(2, &[b"RFB 003.008\n", &[1], &[1], everything]),
        session(3, &[b"RFB 003.003\n", &[0; 16], &[1]]),
        session(3, &[b"RFB 003.007\n", &[2], &[0; 16]]),
        looks(&[0, -223]),
        looks(&[16, -308, -239, -261, -258]),
        looks(&[7, -314, -250, -312]),
        // A piece of 15 bytes: the picture changes its size.
        session(
            0,
            &[&encodings(&[7, -308]), everything, &[changes, &[5, 0, 0, 1, 0]].concat(), &[1], changes],
        ),
        session(0, input),
    ]
}

/// What browsers say, as [`bulkhead_fuzz::web`] reads it.
fn web_requests() -> Vec<Vec<u8>> {
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:6080\r\n{more}\r\n").into_bytes()
    };
    let name = "0123456789abcdef".repeat(2);
    let cookie = format!("Cookie: a=b; bulkhead=1893456000.{}\r\n", "ab".repeat(32));
    let upgrade = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary\r\nOrigin: http://127.0.0.1:6080\r\n";
    // Masked frames, with a mask of zeroes: a greeting, a ping, a fragment and its end, a close.
    let frames: &[&[u8]] = &[
        b"\x82\x8c\0\0\0\0RFB 003.008\n",
        b"\x89\x80\0\0\0\0",
        b"\x02\x81\0\0\0\0a",
        b"\x80\x81\0\0\0\0b",
        b"\x88\x80\0\0\0\0",
    ];
    vec![
        get(&format!("/?token={name}"), ""),
        get(&format!("/{name}/vnc.html?path={name}/websockify"), &cookie),
        get(&format!("/{name}/websockify"), &format!("{upgrade}{cookie}")),
        [get("/", "Connection: close\r\n"), get("/favicon.ico", "")].concat(),
        b"HEAD / HTTP/1.0\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".to_vec(),
        frames.concat(),
    ]
}

/// Frames and what is said about them, as [`bulkhead_fuzz::net_offload`] reads them.
fn frames_with_offloads() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (ip6, protocol) in [(false, 6), (false, 17), (true, 6), (true, 17)] {
        let frame = frame(ip6, protocol, 60);
        let transport = if protocol == 6 { 1u32 } else { 2 };
        let version = if ip6 { 2u32 << 3 } else { 1 << 3 };
        let large = [&frame[..], &[0x5a; 250]].concat();
        let input = |which: u8, first: u32, second: u32, longer: u16, frame: &[u8]| {
            [&[which][..], &first.to_le_bytes(), &second.to_le_bytes(), &longer.to_le_bytes(), frame].concat()
        };
        seeds.push(input(2, transport, 0, 0, &frame));
        seeds.push(input(2 | 8, transport | 4, 0, 0, &frame));
        seeds.push(input(4, version, 1448, 20_000, &large));
        seeds.push(input(4 | 8, version, 100, 0, &large));
        // Data that is valid, and a checksum to be filled in.
        seeds.push(input(1, 2, 0, 0, &frame));
        let (start, place) = (if ip6 { 54u32 } else { 34 }, if protocol == 6 { 16u32 } else { 6 });
        seeds.push(input(1, 1, start | place << 16, 1000, &large));
        let tagged = [&frame[..12], &[0x81, 0, 0x60, 42], &frame[12..]].concat();
        seeds.push(input(1, 2, 0, 0, &tagged));
    }
    seeds
}

/// One line of a script for [`bulkhead_fuzz::keyboard`] or [`bulkhead_fuzz::mouse`]: what happens, and its bytes.
fn hid_step(what: u8, bytes: &[u8]) -> Vec<u8> {
    [&[what, bytes.len() as u8][..], bytes].concat()
}

/// What the console says, as it is in the socket.
fn hid_event(event: &impl seat::Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    event.encode(&mut bytes);
    hid_step(2, &bytes)
}

/// Lives of the whole device: `typed` with and without somebody who reads, an empty datagram, swaps and another guest.
fn hid_device_scripts(typed: &[u8], event: &[u8]) -> Vec<Vec<u8>> {
    let step = |what| hid_step(what, &[]);
    // The same event, more often than there is room for.
    let flood = [&[event[0] | 16][..], &event[1..]].concat();
    vec![
        [&[2][..], &step(1), typed, &step(4), &step(6), typed, &step(4)].concat(),
        [&[2][..], typed, &step(1), &step(3), &flood, &flood, &step(5), &step(1), typed].concat(),
        [&[3][..], &step(1), &flood, &step(7), &step(4), &step(2), typed, &step(6 | 16), &step(4)].concat(),
    ]
}

/// Lives of a keyboard: an odd first byte for a guest that understands characters.
fn keyboard_scripts() -> Vec<Vec<u8>> {
    use seat::keyboard::{FromConsole, Key};
    use vsp_hid::keyboard::{GuestMessage, Keyboard};
    let begin = hid_step(0, &GuestMessage::ProtocolRequest(1 << 16).encode());
    let key = |scancode, e0, e1, up| hid_event(&FromConsole::Key(Key { scancode, e0, e1, up }));
    let typed =
        [key(0x1e, false, false, false), key(0x1e, false, false, true), key(0x2a, false, false, true)]
            .concat();
    let pause = [key(0x1d, false, true, false), key(0x45, false, false, false)].concat();
    let held = [key(0x2a, false, false, false), key(0x1c, true, false, false)].concat();
    let all = hid_event(&FromConsole::ReleaseAll);
    let lamps = hid_step(0, &GuestMessage::LedIndicators(5).encode());
    let saved = vsp_hid::state::save(&Keyboard::new(false), Some(7));
    let whole = hid_device_scripts(&typed, &key(0x1e, false, false, false));
    let alone = vec![
        [&[0][..], &begin, &typed, &lamps].concat(),
        [&[0][..], &begin, &pause, &held, &all, &hid_event(&FromConsole::Ask)].concat(),
        [&[1][..], &begin, &hid_event(&FromConsole::Unicode(0x20ac)), &held].concat(),
        [&[0][..], &typed, &begin, &held, &hid_step(4, &[]), &begin, &all].concat(),
        [&[0][..], &hid_step(0, &GuestMessage::ProtocolRequest(2 << 16).encode()), &held].concat(),
        [&[0][..], &hid_step(3, &saved)].concat(),
    ];
    [alone, whole].concat()
}

/// Lives of a mouse.
fn mouse_scripts() -> Vec<Vec<u8>> {
    use seat::mouse::FromConsole;
    use vsp_hid::mouse::{GuestMessage, Mouse};
    let ask = hid_step(0, &GuestMessage::ProtocolRequest(2 << 16).encode());
    let ack = hid_step(0, &GuestMessage::DeviceInfoAck.encode());
    let moves = [
        FromConsole::Motion { x: 100, y: 32767 },
        FromConsole::Buttons(5),
        FromConsole::Wheel { vertical: -3, horizontal: 1 },
        FromConsole::ReleaseAll,
        FromConsole::Ask,
    ]
    .map(|event| hid_event(&event))
    .concat();
    let saved = vsp_hid::state::save(&Mouse::new(), Some(7));
    let whole = hid_device_scripts(&moves, &hid_event(&FromConsole::Buttons(5)));
    let alone = vec![
        [&[0][..], &ask, &ack, &moves].concat(),
        [&[0][..], &ask, &moves, &ack, &hid_step(4, &[]), &ask, &ack, &moves].concat(),
        [&[0][..], &ack, &hid_step(0, &GuestMessage::ProtocolRequest(1 << 16).encode())].concat(),
        [&[0][..], &hid_step(3, &saved)].concat(),
    ];
    [alone, whole].concat()
}

/// Lives of a PCI function, as [`bulkhead_fuzz::vpci`] reads them.
fn functions() -> Vec<Vec<u8>> {
    let step = |what: u8, bytes: &[u8]| [&[what, bytes.len() as u8][..], bytes].concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let say = |message: &[u32]| step(16, &words(message));
    let bytes = |size: u8, at: u16| [&[size][..], &at.to_le_bytes()].concat();
    // Sizes are in the highest bits: 0x40 is two bytes, 0x80 is four; the first trap is the configuration window.
    let read = |at: u16| step(2, &bytes(0x80, 0x1000 + at));
    let write =
        |trap: u8, at: u16, value: u32| step(3, &[bytes(0x80 | trap, at), words(&[value, 0])].concat());
    let config = |at: u16, value: u32| write(0, 0x1000 + at, value);
    let create = |vector: u32| {
        let mut message = words(&[0x4249_001b, 0, vector]);
        message.extend([0, 0, 1, 0, 1, 0, 0, 0]);
        message.resize(82, 0);
        step(16, &message)
    };
    let place = [config(0x10, 0xf900_0000), config(0x18, 0xfa00_0000), config(4, 0x406)].concat();
    let entry = |vector: u16, data: u32| {
        let at = vector * 16;
        [write(1, at, 0xfee0_0000), write(1, at + 8, data), write(1, at + 12, 0)].concat()
    };
    let messages = [config(0xc0, 0x8000_0011), create(0x41), create(0x42), entry(0, 0), entry(1, 1)].concat();
    let delete = say(&[0x4249_0015, 0, 0x1_0000, 0, 0xfee0_0000, 0]);
    let few = [create(0x20), config(0xa4, 0xfee0_0000), config(0xac, 0), config(0xa0, 0x0001_0005)].concat();
    let relations = [say(&[0x4249_0001]), say(&[0x4249_0005, 0]), step(4, &[])].concat();
    let ejection = [step(22, &[]), say(&[0x4249_000f, 0, 0]), step(4, &[])].concat();
    let exit = [say(&[0x4249_0011, 0]), say(&[0x4249_0008])].concat();
    let (begin, follow) = ([&[0, 0][..], &step(1, &[])].concat(), step(6, &[]));
    let (wide, trapped) = ([&[1, 0][..], &step(1, &[])].concat(), [&[2, 0][..], &step(1, &[])].concat());
    let strange = [&[4][..], &[2, 7, 4], &step(1, &[])].concat();
    vec![
        [&begin[..], &relations, &place, &messages, &delete, &create(0x51), &entry(0, 0), &exit].concat(),
        [&begin[..], &place, &messages, &follow, &read(0), &entry(2, 1), &step(5, &[])].concat(),
        [&begin[..], &place, &few, &follow, &step(7, &[]), &read(0x10), &ejection].concat(),
        [&wide[..], &place, &config(0x14, 0x12), &messages, &step(21, &[1]), &place, &step(21, &[0])]
            .concat(),
        [&trapped[..], &place, &write(1, 8, 7), &follow, &write(2, 8, 7), &step(23, &[]), &relations]
            .concat(),
        [&strange[..], &place, &messages, &read(0x34), &config(0x10, !0), &read(0x10)].concat(),
    ]
}

/// Datagrams of a seat, each behind its length, as [`bulkhead_fuzz::seat`] reads them.
fn seat_datagrams() -> Vec<Vec<u8>> {
    use seat::shape::Shape;
    use seat::video::{Depth, FromConsole, Rect, Rects, Surface, ToConsole};
    use seat::{Build, Message, keyboard, mouse};
    fn said(message: &impl Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        [&(bytes.len() as u16).to_le_bytes()[..], &bytes].concat()
    }
    let (depth, vram_bytes) = (Depth::Xrgb8888, 8 << 20);
    let surface = Surface { width: 1024, height: 768, stride: 4096, depth, offset: 0, vram_bytes };
    let mut rects = Rects::NONE;
    let _ = rects.push(Rect { x1: -1, y1: 2, x2: 2000, y2: 40 });
    let _ = rects.push(Rect { x1: 0, y1: 0, x2: 1, y2: 1 });
    let shape = Shape { width: 40, height: 32, hot_x: 1, hot_y: 2, pixels: vec![0x5a; 40 * 32 * 4] };
    let parts = (0..2).filter_map(|part| shape.part(1, part * 4000)).map(ToConsole::PointerShape);
    let build = Build::new("0.1.0");
    let key = keyboard::Key { scancode: 0x1d, e0: true, e1: false, up: true };
    vec![
        [
            said(&ToConsole::Hello { build }),
            said(&ToConsole::Surface(surface)),
            said(&ToConsole::Dirty(rects)),
            said(&ToConsole::AllDirty),
            said(&ToConsole::PointerPosition { x: -1, y: 5, visible: true }),
            said(&ToConsole::NoSurface),
        ]
        .concat(),
        parts.flat_map(|part| said(&part)).collect(),
        [said(&FromConsole::Ask), said(&FromConsole::Watched(true))].concat(),
        [
            said(&keyboard::ToConsole::Hello { build }),
            said(&keyboard::ToConsole::Ready(true)),
            said(&keyboard::ToConsole::Leds(keyboard::Leds { scroll: true, num: false, caps: true })),
            said(&keyboard::FromConsole::Key(key)),
            said(&keyboard::FromConsole::Unicode(0xe9)),
            said(&keyboard::FromConsole::ReleaseAll),
        ]
        .concat(),
        [
            said(&mouse::FromConsole::Motion { x: 5, y: 32767 }),
            said(&mouse::FromConsole::Buttons(3)),
            said(&mouse::FromConsole::Wheel { vertical: -1, horizontal: 1 }),
            said(&mouse::ToConsole::Ready(false)),
        ]
        .concat(),
    ]
}

/// Messages, states, pointers and lives of a screen, as [`bulkhead_fuzz::synthvid`] reads them.
fn screens() -> Vec<Vec<u8>> {
    use seat::video::Rect;
    use vsp_video::state::{Situation, State};
    use vsp_video::wire::{Dirt, Features, GuestMessage, HostMessage, PointerPart, Resolution, Version};
    let situation =
        Situation { active: true, offset: 0, depth_bits: 32, width: 1024, height: 768, pitch: 4096 };
    let (index, is_argb, bytes) = (PointerPart::LAST, true, &[0, 1, 1, 1]);
    let part = PointerPart { index, is_argb, width: 1, height: 1, hot_x: 0, hot_y: 0, bytes };
    let dirt =
        Dirt::message(&[Rect { x1: 0, y1: 0, x2: 100, y2: 100 }, Rect { x1: -1, y1: 5, x2: 9999, y2: 6 }]);
    let mut messages: Vec<Vec<u8>> = [
        GuestMessage::VersionRequest(Version::V3_5),
        GuestMessage::ResolutionRequest { most: 64 },
        GuestMessage::VramLocation { context: 1, gpa: Some(0xf800_0000) },
        GuestMessage::SituationUpdate { context: 0, situation: Some(situation) },
        GuestMessage::PointerPosition { visible: true, x: 0, y: 0 },
        GuestMessage::PointerShape(part),
    ]
    .iter()
    .map(GuestMessage::encode)
    .collect();
    messages.push(dirt);
    let resolutions = vec![Resolution { width: 1280, height: 800 }, Resolution { width: 640, height: 480 }];
    let host = [
        HostMessage::VersionResponse { version: Version::V3_5, accepted: true },
        HostMessage::VramLocationAck { context: 1 },
        HostMessage::SituationUpdateAck { context: 1 },
        HostMessage::FeatureChange(Features::ALL),
        HostMessage::ResolutionResponse { resolutions, preferred: 1 },
    ];
    let state = State { version: Some(Version::V3_5), vram: Some(0xf800_0000), situation: Some(situation) };
    // A driver's life step by step, turns between; then dying, handing over, closing, a console that asks.
    let says = |message: &Vec<u8>| [&[0][..], &strings(&[message.clone()]), &[6]].concat();
    let life: Vec<u8> = [&[3][..], &messages.iter().flat_map(says).collect::<Vec<_>>()].concat();
    let short = [3, 3, 5, 6, 4, 0, 6, 6, 5, 0, 4, 0, 3, 0, 6];
    let mut seeds: Vec<_> = messages
        .iter()
        .cloned()
        .chain(host.iter().map(HostMessage::encode))
        .map(|m| [&[0][..], &m].concat())
        .collect();
    seeds.push([&[1][..], &state.encode()].concat());
    seeds.push(vec![2, 0, 0x40, 32, 32, 0, 8, 1, 0x40, 32, 32, 0, 6, 255, 0x40, 32, 32, 0, 2]);
    seeds.push(life.clone());
    seeds.push([&short[..], &[8, 2, 6, 10, 13, 10, 14, 15, 10, 12, 10, 14]].concat());
    seeds.push([&short[..], &[11, 4, 1, 4, 2, 6, 13, 6, 14, 27, 4, 1, 6, 6, 14]].concat());
    seeds.push([&short[..], &[8, 0, 8, 1, 9, 3, 1, 2, 3, 6, 10, 4, 3, 20, 0, 12]].concat());
    seeds
}

/// Lives of a guest with a NIC of virtio's, as [`bulkhead_fuzz::vhost_net`] reads them.
fn vhost_net_scripts() -> Vec<Vec<u8>> {
    let word = |word: u16| word.to_le_bytes();
    // A request of a queue's: how it is made, where it is, how long its pieces are.
    let request = |queue: u8, what: u8, place: u16, len: u16| {
        [&[queue << 4, what][..], &word(place), &word(len)].concat()
    };
    let write = |at: u16, bytes: &[u8]| [&[4][..], &word(at), &strings(&[bytes.to_vec()])].concat();
    let frame = |head: &[u8], len: u16| [&[5][..], &strings(&[head.to_vec()]), &word(len)].concat();
    let ethernet = [2, 0, 0x5e, 0x10, 0, 1, 2, 0, 0x5e, 0x10, 0, 2, 8, 0];
    let turn = vec![7u8, 9];
    let buffers =
        |what: u8, len: u16| (0..8).flat_map(|n| request(0, what, n * 0x400, len)).collect::<Vec<_>>();
    // Frames out: a header of twelve bytes, then the frame, 0x8000 bytes behind where tables begin.
    let out =
        [&write(0x7000, &[&[0; 12][..], &ethernet].concat())[..], &request(1, 1, 0, 100), &turn].concat();
    let mut unfinished = [0; 12];
    (unfinished[0], unfinished[1], unfinished[4], unfinished[6], unfinished[8]) = (1, 1, 100, 34, 16);
    let lying =
        [&write(0x7000, &[&unfinished[..], &ethernet].concat())[..], &request(1, 0x83, 0, 500), &turn]
            .concat();
    let into = [&buffers(0, 1500)[..], &frame(&ethernet, 60), &turn, &frame(&ethernet, 1514), &turn].concat();
    let small =
        [&buffers(0x83, 20)[..], &frame(&ethernet, 600), &turn, &frame(&ethernet, 9014), &turn].concat();
    let life = |traits: u8, steps: &[&[u8]]| [&[traits][..], &steps.concat()].concat();
    let wild =
        [&[10 + 16, 3][..], &word(0x1234), &[200, 0, 0, 0, 1, 4], &[11 + 16, 3, 11 + 16, 19, 7]].concat();
    vec![
        life(0, &[&into, &out, &into, &out]),
        life(0x41, &[&into, &lying, &small]),
        life(2, &[&small, &[14], &into, &[14], &out, &[13, 13 + 16], &into, &out]),
        life(0xa0, &[&out, &wild, &turn, &into, &[12], &word(30_000), &turn, &out]),
        life(0x31, &[&into, &[13], &frame(&ethernet, 700), &[14, 7], &request(2, 0, 0, 900), &turn]),
    ]
}

/// Sessions of a front end of vhost-user: of each message its number, how many descriptors it has and of which kind, and its payload.
fn vhost_sessions() -> Vec<Vec<u8>> {
    fn longs(all: &[u64]) -> Vec<u8> {
        all.iter().flat_map(|long| long.to_ne_bytes()).collect()
    }
    let message = |code: u8, fds: u8, payload: &[u64]| {
        let payload = longs(payload);
        [&[code, fds, payload.len() as u8][..], &payload].concat()
    };
    const USER: u64 = 0x10_0000;
    let begin = [
        message(3, 0, &[]),
        message(1, 0, &[]),
        message(15, 0, &[]),
        message(16, 0, &[0x9209]),
        message(2, 0, &[1 << 32 | 7 << 28]),
        message(17, 0, &[]),
        message(36, 0, &[]),
        message(5, 1, &[1, 0, 1 << 18, USER, 0]),
        message(31, 0, &[0, 0, 16 << 16 | 2]),
        message(32, 1, &[4096, 0, 16 << 16 | 2]),
        message(8, 0, &[16 << 32]),
        message(10, 0, &[0]),
        message(9, 0, &[0, USER, USER + 0x400, USER + 0x200, 0]),
        message(13, 31, &[0]),
        message(12, 31, &[0]),
        message(18, 0, &[1 << 32]),
    ]
    .concat();
    let end = [message(18, 0, &[0]), message(11, 0, &[0])].concat();
    let memory = [
        message(37, 1, &[0, 1 << 20, 1 << 18, USER << 4, 0]),
        message(38, 0, &[0, 1 << 20, 1 << 18, USER << 4, 0]),
    ];
    let config = message(24, 0, &[4 << 32, 0])[..].to_vec();
    vec![begin.clone(), [begin.clone(), end].concat(), [begin, memory.concat()].concat(), config]
}

/// Guests of a block device: traits, then steps.
fn vhost_guests() -> Vec<Vec<u8>> {
    let request = |what: u8, blocks: u8| vec![0, what, 8, 0, blocks, 0x20, 1];
    let all =
        [request(0, 8), request(65, 8), request(4, 0), request(128, 16), request(8, 1), vec![6]].concat();
    let dies = [&all[..], &[9], &request(0, 1)].concat();
    let stops = [&all[..], &[8], &request(65, 1)].concat();
    let loops = [&[3, 0, 0, 0, 8, 0, 1, 1][..], &[3, 1, 0, 0, 8, 0, 1, 0], &[4, 0, 6, 5, 9, 9, 8]].concat();
    [all, dies, stops, loops]
        .iter()
        .flat_map(|script| (0..3).map(|traits| [&[traits], &script[..]].concat()))
        .collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    write("bus", &bus_scripts())?;
    write("device", &device_scripts())?;
    write("vhost_message", &vhost_sessions())?;
    write("vhost_blk", &vhost_guests())?;
    write("channel_message", &channel_messages())?;
    let two = [gpadl_messages(40), gpadl_messages(3)].concat();
    write("gpadl", &[strings(&gpadl_messages(3)), strings(&gpadl_messages(100)), strings(&two)])?;
    write("hypercall", &hypercalls())?;
    write("ledger", &ledgers())?;
    write("web", &web_requests())?;
    write("ring_reader", &rings())?;
    write(
        "ring_writer",
        &[vec![4, 100, 0, 1, 16, 0, 4, 200, 0], vec![4, 0x68, 6, 4, 0x68, 6, 1, 0xd8, 0, 4, 8, 7]],
    )?;
    let packets: Vec<_> = type_headers()
        .iter()
        .map(|(packet_type, header)| {
            [&[*packet_type as u8, (header.len() / 8) as u8][..], header, &[0x5a; 64]].concat()
        })
        .collect();
    write("packet", &packets)?;
    write("ipc_message", &ipc_messages())?;
    let commands: Vec<_> = commands().iter().map(|cdb| [&[8u8][..], cdb].concat()).collect();
    write("rfb", &rfb_sessions())?;
    write("seat", &seat_datagrams())?;
    write("synthvid", &screens())?;
    write("vpci", &functions())?;
    write("keyboard", &keyboard_scripts())?;
    write("mouse", &mouse_scripts())?;
    write("nvsp", &nvsp_messages())?;
    write("vhost_net", &vhost_net_scripts())?;
    write("rndis", &rndis_messages())?;
    write("net_offload", &frames_with_offloads())?;
    write("scsi_command", &commands)?;
    write("storvsc_packet", &packets_to_storage())?;
    let list = vsp_storage::scsi::unmap::list(&[(5, 7), (100, 1)]);
    write("unmap_list", &[[&1000u32.to_le_bytes()[..], &list].concat()])
}
