use super::scsi::Capacity;
use super::wire::SRB_STATUS_INVALID_LUN;
use super::*;
use crate::testing::{PATIENCE, connected, offered};
use vmbus::guid::class;

#[test]
fn a_disk_is_written_read_and_trimmed() {
    let (host, mut client) = connected();
    let offer = offered(&mut client, class::SCSI);
    let mut disk = Storage::open(&mut client, &offer, &StorageOptions::default()).expect("opened");
    assert_eq!(disk.version(), PROTOCOL_WIN10);
    assert_eq!(disk.properties().max_transfer_bytes, 0x4_0000);
    assert_eq!(disk.read_capacity(0).expect("capacity"), Capacity { blocks: 256, block_size: 512 });
    let data: Vec<u8> = (0..20 * 512).map(|i| (i / 3) as u8).collect();
    disk.write(0, 5, &data, 512).expect("written");
    disk.flush(0).expect("flushed");
    assert_eq!(disk.read(0, 5, 20, 512).expect("read"), data);
    disk.unmap(0, &[(6, 2)]).expect("trimmed");
    assert_eq!(disk.read(0, 6, 2, 512).expect("read"), [0; 1024]);
    client.close(disk.into_channel().expect("nothing is under way")).expect("closed");
    assert_eq!(host.pages_shared(), 0);
}

#[test]
fn many_requests_are_under_way_at_once() {
    let (_host, mut client) = connected();
    let offer = offered(&mut client, class::SCSI);
    let mut disk = Storage::open(&mut client, &offer, &StorageOptions::default()).expect("opened");
    let buffer = disk.allocate(8 * 512).expect("memory");
    for block in 0..8 {
        let part = buffer.part(block * 512, 512);
        disk.push(0, &scsi::read_16(u64::from(block), 1), Direction::Read, part).expect("pushed");
    }
    assert_eq!(disk.in_flight(), 8);
    disk.flush_requests().expect("flushed");
    for id in 1..=8 {
        let done = disk.completion(PATIENCE).expect("good").expect("in time");
        assert_eq!((done.id, done.moved().expect("read")), (RequestId(id), 512));
    }
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn failures_say_why() {
    let (_host, mut client) = connected();
    let offer = offered(&mut client, class::SCSI);
    let mut disk = Storage::open(&mut client, &offer, &StorageOptions::default()).expect("opened");
    assert!(matches!(disk.inquiry(0), Err(Error::Scsi { scsi: 2, sense, .. }) if sense[2] == 5));
    assert!(matches!(disk.test_unit_ready(1), Err(Error::Scsi { srb: SRB_STATUS_INVALID_LUN, .. })));
    let id = disk.submit(0, &scsi::read_16(0, 0), Direction::None, Buffer::NONE).expect("sent");
    assert!(matches!(disk.into_channel(), Err(Error::Lost(1))), "{id:?} was never waited for");
}

#[test]
fn a_controller_is_used_through_several_channels() {
    let (host, mut client) = connected();
    let offer = offered(&mut client, class::SCSI);
    let options = StorageOptions::default();
    let mut disk = Storage::open(&mut client, &offer, &options).expect("opened");
    assert_eq!(disk.properties().max_channels, 3);
    assert!(disk.create_sub_channels(4).is_err(), "more than there are");
    let mut queues = disk.open_sub_channels(&mut client, 3, &options).expect("opened");
    assert_eq!(queues.iter().map(|queue| queue.channel.target_vp()).collect::<Vec<_>>(), [1, 0, 1]);
    for (lba, queue) in (0..).zip(&mut queues) {
        queue.write(0, lba, &[lba as u8 + 1; 512], 512).expect("written");
        assert_eq!(disk.read(0, lba, 1, 512).expect("read"), [lba as u8 + 1; 512]);
    }
    for queue in queues.into_iter().chain([disk]) {
        client.close(queue.into_channel().expect("nothing is under way")).expect("closed");
    }
    assert_eq!(host.pages_shared(), 0);
}
