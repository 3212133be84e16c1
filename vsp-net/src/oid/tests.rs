use super::number as n;
use super::*;
use crate::rndis::RndisStatus;

const OWN: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 2];
const EVERYBODY: Mac = [0xff; 6];
const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

fn config() -> Config {
    Config {
        mac: OWN,
        mac_locked: false,
        mtu: 9000,
        speed: 10_000_000_000,
        queues: 4,
        offloads: Offloads::TAP,
        name: "eth0".into(),
    }
}

/// After Linux has said what its driver can.
fn state() -> State {
    let mut state = State::new(config());
    state.set_ndis_version(6, 30);
    state.set_config_mtu(1514);
    state
}

fn asked(state: &State, oid: u32) -> Result<Vec<u8>, RndisStatus> {
    let mut out = b"left over".to_vec();
    let result = query(state, oid, &[], &mut out);
    assert!(result.is_ok() || out.is_empty());
    result.map(|()| out)
}

fn word(state: &State, oid: u32) -> u32 {
    u32::from_le_bytes(asked(state, oid).unwrap().try_into().unwrap())
}

#[test]
fn linux_finds_what_it_asks_for() {
    let state = state();
    assert_eq!(word(&state, n::GEN_MAXIMUM_FRAME_SIZE), 1500);
    assert_eq!(asked(&state, n::PERMANENT_ADDRESS), Ok(OWN.to_vec()));
    assert_eq!(asked(&state, n::GEN_FRIENDLY_NAME), Ok(b"e\0t\0h\x000\0\0\0".to_vec()));
    assert_eq!(asked(&state, n::TCP_OFFLOAD_HARDWARE_CAPABILITIES).unwrap().len(), 156);
    assert_eq!(word(&state, n::GEN_MEDIA_CONNECT_STATUS), 0);
    assert_eq!(word(&state, n::GEN_LINK_SPEED) / 10_000, 10_000, "Mbit/s");
    let rss = asked(&state, n::GEN_RECEIVE_SCALE_CAPABILITIES).unwrap();
    assert_eq!((rss.len(), rss[12]), (18, 4));
}

#[test]
fn everything_on_the_list_is_answered_or_can_be_set() {
    for minor in [0, 1, 30] {
        let mut state = State::new(config());
        state.set_ndis_version(6, minor);
        let list = asked(&state, n::GEN_SUPPORTED_LIST).unwrap();
        let list: Vec<u32> =
            list.chunks_exact(4).map(|oid| u32::from_le_bytes(oid.try_into().unwrap())).collect();
        assert_eq!(list.contains(&n::GEN_STATISTICS), minor >= 1);
        assert_eq!(list.contains(&n::GEN_RECEIVE_SCALE_PARAMETERS), minor >= 30);
        let mut once = list.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), list.len());
        for oid in list {
            let can_set = set(&mut state, oid, &[]) != Err(RndisStatus::NOT_SUPPORTED);
            assert!(asked(&state, oid).is_ok() || can_set, "{oid:#x}");
        }
    }
}

#[test]
fn what_there_is_not_is_refused() {
    let mut state = state();
    for oid in [0, 1, 0x0001_0117, 0x0001_021C, 0x0d01_0101, u32::MAX] {
        assert_eq!(asked(&state, oid), Err(RndisStatus::NOT_SUPPORTED));
        assert_eq!(set(&mut state, oid, &[0; 64]), Err(RndisStatus::NOT_SUPPORTED));
    }
    assert_eq!(set(&mut state, n::PERMANENT_ADDRESS, &OTHER), Err(RndisStatus::NOT_SUPPORTED));
    state.name.clear();
    assert_eq!(asked(&state, n::GEN_FRIENDLY_NAME), Err(RndisStatus::NOT_SUPPORTED));
}

#[test]
fn long_names_are_cut_to_what_linux_has_room_for() {
    let state = State::new(Config { name: "ä".repeat(1000), ..config() });
    let name = asked(&state, n::GEN_FRIENDLY_NAME).unwrap();
    assert_eq!((name.len(), &name[510..]), (512, &[0, 0][..]));
}

#[test]
fn the_mtu_is_the_guests_within_the_policy() {
    let mut state = State::new(config());
    assert_eq!(state.mtu, 1500);
    for (frame, mtu) in
        [(1514, 1500), (9014, 9000), (9015, 9000), (u32::MAX, 9000), (82, 68), (81, 68), (13, 68), (0, 68)]
    {
        state.set_config_mtu(frame);
        assert_eq!((state.mtu, word(&state, n::GEN_MAXIMUM_FRAME_SIZE)), (mtu, mtu));
        assert_eq!(word(&state, n::GEN_MAXIMUM_TOTAL_SIZE), mtu + 14);
    }
    for (policy, mtu) in [(1400, 1400), (0, 68), (u32::MAX, 9000)] {
        let mut state = State::new(Config { mtu: policy, ..config() });
        state.set_config_mtu(65_535);
        assert_eq!((state.mtu, state.max_mtu()), (mtu, mtu));
    }
}

#[test]
fn frames_are_wanted_by_filter() {
    let mut state = state();
    let all = [OWN, OTHER, EVERYBODY, GROUP];
    for (filter, wanted) in [
        (0, [false, false, false, false]),
        // What Linux sets when it is up, and in promiscuous mode.
        (0xd, [true, false, true, true]),
        (0x20, [true, true, true, true]),
        (1, [true, false, false, false]),
        (2, [false, false, false, false]),
        (8, [false, false, true, false]),
        (4, [false, false, false, true]),
    ] {
        let value = u32::to_le_bytes(filter);
        assert_eq!(set(&mut state, n::GEN_CURRENT_PACKET_FILTER, &value), Ok(Effect::Filter));
        assert_eq!(all.map(|destination| state.accepts(&destination)), wanted, "{filter:#x}");
        assert_eq!(word(&state, n::GEN_CURRENT_PACKET_FILTER), filter);
    }
    let short = set(&mut state, n::GEN_CURRENT_PACKET_FILTER, &[1, 0, 0]);
    assert_eq!(short, Err(RndisStatus::INVALID_LENGTH));
}

#[test]
fn groups_are_kept_and_not_endless() {
    let mut state = state();
    state.filter = PacketFilter::MULTICAST;
    let group = |n: u8| [1, 0, 0x5e, 0, 0, n];
    let list: Vec<u8> = (0..32).flat_map(group).collect();
    assert_eq!(set(&mut state, n::MULTICAST_LIST, &list), Ok(Effect::Filter));
    assert!(state.accepts(&group(31)) && !state.accepts(&group(32)));
    assert_eq!(asked(&state, n::MULTICAST_LIST), Ok(list.clone()));
    let longer = [&list[..], &group(32)].concat();
    assert_eq!(set(&mut state, n::MULTICAST_LIST, &longer), Err(RndisStatus::MULTICAST_FULL));
    assert_eq!(set(&mut state, n::MULTICAST_LIST, &list[..7]), Err(RndisStatus::INVALID_LENGTH));
    let mut one = |oid, n| set(&mut state, oid, &group(n));
    assert_eq!(one(n::ADD_MULTICAST_ADDRESS, 32), Err(RndisStatus::MULTICAST_FULL));
    assert_eq!(one(n::ADD_MULTICAST_ADDRESS, 31), Err(RndisStatus::MULTICAST_EXISTS));
    assert_eq!(one(n::DELETE_MULTICAST_ADDRESS, 0), Ok(Effect::Filter));
    assert_eq!(one(n::DELETE_MULTICAST_ADDRESS, 0), Err(RndisStatus::MULTICAST_NOT_FOUND));
    assert_eq!(one(n::ADD_MULTICAST_ADDRESS, 32), Ok(Effect::Filter));
    assert!(state.accepts(&group(32)) && !state.accepts(&group(0)) && state.accepts(&group(1)));
    assert_eq!(set(&mut state, n::MULTICAST_LIST, &[]), Ok(Effect::Filter));
    assert!(state.multicast.as_slice().is_empty());
}

#[test]
fn both_addresses_are_the_guests() {
    let mut state = state();
    assert!(state.is_ours(&OWN) && !state.is_ours(&OTHER));
    assert_eq!(set(&mut state, n::CURRENT_ADDRESS, &OTHER), Ok(Effect::Mac));
    assert!(state.is_ours(&OWN) && state.is_ours(&OTHER));
    state.halt();
    assert_eq!((state.mac, asked(&state, n::CURRENT_ADDRESS)), (OTHER, Ok(OTHER.to_vec())));
    assert_eq!(set(&mut state, n::CURRENT_ADDRESS, &GROUP), Err(RndisStatus::INVALID_DATA));
    assert_eq!(set(&mut state, n::CURRENT_ADDRESS, &OTHER[..5]), Err(RndisStatus::INVALID_LENGTH));
}

#[test]
fn the_link_is_shown_up_and_down() {
    let mut state = state();
    for (up, status, connected) in [(true, 0, 1), (false, 1, 2)] {
        state.link_up = up;
        assert_eq!(word(&state, n::GEN_MEDIA_CONNECT_STATUS), status);
        let link = asked(&state, n::GEN_LINK_STATE).unwrap();
        assert_eq!((link.len(), link[4]), (40, connected));
        assert_eq!(link[16..24], 10_000_000_000u64.to_le_bytes());
    }
    state.speed = u64::MAX;
    assert_eq!(word(&state, n::GEN_LINK_SPEED), u32::MAX);
}

#[test]
fn coalescing_is_off_until_it_is_asked_for() {
    let mut state = state();
    let coalescing = Offloads::RSC4 | Offloads::RSC6;
    assert_eq!(state.enabled, Offloads::TAP - coalescing);
    let mut value = vec![0x80, 3, 28, 0];
    value.resize(28, 0);
    (value[22], value[23]) = (2, 2);
    assert_eq!(set(&mut state, n::TCP_OFFLOAD_PARAMETERS, &value), Ok(Effect::Offloads));
    assert_eq!(state.enabled, Offloads::TAP);
    let current = asked(&state, n::TCP_OFFLOAD_CURRENT_CONFIG).unwrap();
    assert_eq!(current[144..146], [1, 1]);
    state.halt();
    assert_eq!(state.enabled, Offloads::TAP - coalescing);
}

#[test]
fn what_ends_with_rndis_and_what_with_the_channel() {
    let mut state = changed();
    state.halt();
    assert_eq!((state.filter, state.rss.clone()), (PacketFilter::empty(), None));
    assert!(state.multicast.as_slice().is_empty());
    assert_eq!((state.mtu, state.mac, state.link_up), (9000, OTHER, false));
    assert_eq!(asked(&state, n::TCP_OFFLOAD_HARDWARE_CAPABILITIES).unwrap().len(), 156);
    state.reopen();
    assert_eq!((state.mtu, state.mac, state.link_up), (1500, OTHER, false));
    assert_eq!(asked(&state, n::TCP_OFFLOAD_HARDWARE_CAPABILITIES).unwrap().len(), 112);
}

#[test]
fn only_ethernet_can_be_switched_on() {
    let mut state = state();
    let shown = asked(&state, n::OFFLOAD_ENCAPSULATION).unwrap();
    assert_eq!(set(&mut state, n::OFFLOAD_ENCAPSULATION, &shown), Ok(Effect::None));
    for at in [8, 12, 20, 24] {
        let mut value = shown.clone();
        value[at] = 4;
        assert_eq!(set(&mut state, n::OFFLOAD_ENCAPSULATION, &value), Err(RndisStatus::NOT_SUPPORTED));
    }
    assert_eq!(set(&mut state, n::OFFLOAD_ENCAPSULATION, &shown[..27]), Err(RndisStatus::INVALID_LENGTH));
}

/// One in which nothing is as it was.
fn changed() -> State {
    let mut state = state();
    state.set_config_mtu(9014);
    state.mac = OTHER;
    state.link_up = false;
    state.speed = 1_000_000_000;
    state.filter = PacketFilter::DIRECTED | PacketFilter::from_bits_retain(1 << 30);
    assert!(state.multicast.add(&GROUP) && state.multicast.add(&[0x33, 0x33, 0, 0, 0, 1]));
    state.enabled = Offloads::TX_TCP4 | Offloads::RSC6;
    state.statistics.receive.count(&GROUP, 100);
    state.statistics.transmit.count(&OTHER, 60);
    state.statistics.transmit.errors = u64::MAX;
    let table: Vec<u32> = (0..128).map(|entry| entry % 4).collect();
    let value = rss::tests::parameters(0, &table, &[9; 40]);
    assert_eq!(set(&mut state, n::GEN_RECEIVE_SCALE_PARAMETERS, &value), Ok(Effect::Rss));
    state
}

fn saved(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.save(&mut bytes);
    bytes
}

#[test]
fn a_successor_knows_all() {
    let before = changed();
    let bytes = saved(&before);
    assert!(bytes.len() <= 1024, "{}", bytes.len());
    let mut after = State::new(config());
    assert_eq!(after.restore(&bytes), Ok(()));
    assert_eq!(after, before);
    // One that had no RSS takes it away.
    assert_eq!(after.restore(&saved(&state())), Ok(()));
    assert_eq!(after, state());
    // A full list of groups fits too.
    let mut full = changed();
    full.multicast =
        Multicast::from_bytes(&(0..32).flat_map(|n| [1, 0, 0, 0, 0, n]).collect::<Vec<_>>()).unwrap();
    assert!(saved(&full).len() <= 1024);
}

#[test]
fn a_successor_keeps_to_what_it_was_started_with() {
    let bytes = saved(&changed());
    let less = Config { mtu: 1500, queues: 2, offloads: Offloads::TX_TCP4, ..config() };
    let mut after = State::new(less);
    assert_eq!(after.restore(&bytes), Ok(()));
    assert_eq!((after.mtu, after.enabled, after.rss), (1500, Offloads::TX_TCP4, None));
}

#[test]
fn unknown_records_are_skipped_and_damage_is_noticed() {
    let before = changed();
    let good = saved(&before);
    let mut after = state();
    assert_eq!(after.restore(&[&[0xff, 0xff, 2, 0, 1, 2][..], &good].concat()), Ok(()));
    assert_eq!(after, before);
    let untouched = after.clone();
    let mut lens = 0;
    for len in 1..good.len() {
        // Between two records nothing seems to be missing.
        lens += usize::from(after.restore(&good[..len]).is_err());
        after = untouched.clone();
    }
    assert_eq!(lens, good.len() - 1 - 9);
    for damage in [
        [1, 0, 0, 0, 0, 0],
        [2, 0, 2, 0, 0, 0],
        [3, 0, 0, 0, 0, 0],
        [5, 0, 2, 0, 0, 0],
        [6, 0, 2, 0, 0, 0],
        [8, 0, 2, 0, 0, 0],
    ] {
        let damage = &damage[..4 + usize::from(damage[2])];
        assert_eq!(after.restore(damage), Err(RestoreError::Damaged(damage[0].into())));
    }
    assert_eq!(after, untouched);
    assert_eq!(after.restore(&[1, 0, 7, 0, 1]), Err(RestoreError::CutOff(1)));
}
