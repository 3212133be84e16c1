use super::*;
use crate::testing::{FakeHost, PATIENCE, connected, offered};
use vmbus::guid::class;

#[test]
fn the_newest_common_version_is_spoken() {
    for newest in Version::ALL {
        let client = Client::connect(FakeHost::new(newest), Options::default()).expect("connected");
        assert_eq!(client.version(), newest);
        client.unload().expect("unloaded");
    }
}

#[test]
fn a_host_that_speaks_no_proposed_version_is_an_error() {
    let options = Options { versions: vec![Version::V5_3, Version::V5_2], ..Options::default() };
    let result = Client::connect(FakeHost::new(Version::V5_1), options);
    assert!(matches!(result, Err(Error::NoVersion)));
}

#[test]
fn offers_open_and_close_many_times() {
    let (host, mut client) = connected();
    assert_eq!(client.request_offers().expect("offers").len(), 2);
    let offer = offered(&mut client, class::ECHO);
    for pages in [2, 3, 20] {
        let options = OpenOptions { to_host_pages: pages, to_guest_pages: 2, ..OpenOptions::default() };
        let mut channel = client.open(&offer, &options).expect("opened");
        assert_eq!(host.pages_shared(), pages as usize + 2);
        client.retarget(&mut channel, 1).expect("retargeted");
        assert_eq!(channel.target_vp(), 1);
        client.close(channel).expect("closed");
        assert_eq!(host.pages_shared(), 0);
    }
    assert_eq!(client.next_message(Duration::ZERO).expect("good"), None, "nothing came that was not due");
}

#[test]
fn a_message_to_the_wrong_connection_is_refused() {
    let (_host, mut client) = connected();
    let unload = GuestMessage::Unload.encode();
    assert!(matches!(client.post_raw_to(1, &unload), Err(Error::PostRefused(18))));
}

#[test]
fn a_silent_host_is_a_timeout() {
    let (_host, mut client) = connected();
    let offer = offered(&mut client, class::ECHO);
    let mut channel = client.open(&offer, &OpenOptions::default()).expect("opened");
    assert!(channel.receive(Duration::from_millis(10)).expect("good").is_none());
    let short = Duration::from_millis(1);
    let big = [0; 3000];
    let packet = vmbus::packet::Outgoing::in_band(1, true);
    // Written behind the device's back: it is never signalled, so the ring stays full.
    while channel.writer().push(&packet, &[&big]).is_ok() {}
    let _ = channel.writer().publish();
    assert!(matches!(channel.send_waiting(&packet, &[&big], short), Err(Error::Timeout(_))));
    channel.signal().expect("signalled");
    while channel.receive(Duration::ZERO).expect("good").is_some() {}
    channel.send_waiting(&packet, &[&big], PATIENCE).expect("there is room now");
}
