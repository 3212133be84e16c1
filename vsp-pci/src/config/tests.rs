//! What a guest can see of configuration space, and what it can change.

use proptest::prelude::*;

use super::*;
use crate::testing::Bare;

const BAR0: u16 = register::BARS;

fn nic() -> (Config, Bare) {
    let bare = Bare::new(crate::mock::Model::nic());
    (Config::of(&bare).unwrap(), bare)
}

fn read(config: &Config, bare: &Bare, at: u16, len: usize) -> u32 {
    let mut bytes = [0; 4];
    config.read(at, &mut bytes[..len], bare);
    u32::from_le_bytes(bytes)
}

/// Capabilities as a guest finds them.
fn capabilities(config: &Config, bare: &Bare) -> Vec<(u8, u16)> {
    let mut all = Vec::new();
    let mut at = read(config, bare, register::CAPABILITIES, 1) as u16;
    while at != 0 {
        all.push((read(config, bare, at, 1) as u8, at));
        at = read(config, bare, at + 1, 1) as u16;
    }
    all
}

#[test]
fn what_a_guest_finds_is_what_it_can_have() {
    let (config, bare) = nic();
    assert_eq!(read(&config, &bare, 0, 4), 0x10d3_8086);
    assert_eq!(read(&config, &bare, register::LINE, 2), 0, "no interrupt line");
    assert_eq!(read(&config, &bare, 0x30, 4), 0, "no expansion ROM");
    assert_eq!(capabilities(&config, &bare), [(1, 0x40), (0x10, 0x60), (5, 0xa0), (0x11, 0xc0)]);
    assert_eq!(read(&config, &bare, 0x50, 4), 0, "what is not shown reads as zero");
    assert_eq!(read(&config, &bare, 0x44, 2), 8, "nothing is lost by sleeping, since it never sleeps");
    // Of the extended ones, there is a serial number behind a capability that is none.
    assert_eq!(read(&config, &bare, 0x100, 4), 0x1400_0000);
    assert_eq!(read(&config, &bare, 0x140, 4), 0x0001_0003);
    assert_eq!(read(&config, &bare, 0x104, 4), 0);
    let description = config.description(7);
    assert_eq!((description.vendor, description.class, description.serial), (0x8086, [1, 0, 0, 2], 7));
    let msix = config.msix().unwrap();
    assert_eq!((msix.vectors, msix.table.bar, msix.table.at, msix.pending.at), (5, 3, 0, 0x1000));
}

#[test]
fn a_guest_asks_for_sizes_as_drivers_do() {
    let (mut config, bare) = nic();
    // prepopulate_bars and pci_read_bases: an address, all ones, and the address again.
    for (bar, size) in [(0, 128 << 10), (1, 128 << 10), (3, 16 << 10u32)] {
        let at = BAR0 + 4 * bar;
        config.write(at, &0xf800_0000u32.to_le_bytes(), &bare);
        config.write(at, &u32::MAX.to_le_bytes(), &bare);
        assert_eq!(read(&config, &bare, at, 4), !(size - 1));
        config.write(at, &0xf800_0000u32.to_le_bytes(), &bare);
        assert_eq!(read(&config, &bare, at, 4), 0xf800_0000);
    }
    for bar in [2, 4, 5] {
        let at = BAR0 + 4 * bar;
        config.write(at, &u32::MAX.to_le_bytes(), &bare);
        assert_eq!(read(&config, &bare, at, 4), 0, "ports are not offered");
    }
    assert_eq!(config.bars().probed(), [0xfffe_0000, 0xfffe_0000, 0, 0xffff_c000, 0, 0]);
    assert_eq!(config.place(0), None, "not before memory is on");
    let changes = config.write(register::COMMAND, &0x0402u16.to_le_bytes(), &bare);
    assert!(changes.places && changes.any && !changes.messages);
    assert_eq!(config.place(0), Some(0xf800_0000));
    assert_eq!(bare.config(BAR0, 4), 0xfe00_0000, "nothing of it is written into the function");
}

#[test]
fn wide_and_small_registers_are_placed_by_the_page() {
    let bare = Bare::new(crate::mock::Model::drive());
    let mut config = Config::of(&bare).unwrap();
    assert_eq!(config.bars().probed(), [0xffff_c004, 0xffff_ffff, 0, 0, 0, 0]);
    config.write(BAR0, &0x1000_0000u32.to_le_bytes(), &bare);
    config.write(BAR0 + 4, &0x12u32.to_le_bytes(), &bare);
    config.write(register::COMMAND, &[2], &bare);
    assert_eq!(config.place(0), Some(0x12_1000_0000));
    assert_eq!(read(&config, &bare, BAR0, 4), 0x1000_0004);
    let small = Config::of(&Bare::new(crate::mock::Model::small())).unwrap();
    assert_eq!(small.bars().probed()[0], 0xffff_f000);
    assert_eq!((small.msi().unwrap().vectors, small.msix()), (8, None));
}

#[test]
fn what_a_guest_may_not_write_is_lost() {
    let (mut config, bare) = nic();
    let before = bare.image();
    let passed = |at: &u16| matches!(at, 0x68 | 0x88);
    for at in (0u16..4096).step_by(4).filter(|at| !passed(at)) {
        config.write(at, &[0xff; 4], &bare);
    }
    assert!(bare.image() == before, "the function's own registers are the host's");
    assert_eq!(read(&config, &bare, 0, 4), 0x10d3_8086);
    assert_eq!(config.command(), command::GUESTS);
    assert_eq!(read(&config, &bare, 0x2c, 4), 0x8086);
    assert_eq!(capabilities(&config, &bare).len(), 4, "the chain holds");
    // Device control of PCI Express (and its continuation) is the function's own: the kernel sees to what is written there.
    config.write(0x68, &[0x34, 0x12], &bare);
    assert_eq!(bare.config(0x68, 2), 0x1234);
    config.reset();
    assert_eq!(config.command(), 0);
}

#[test]
fn how_to_be_interrupted_is_noted_and_not_passed_on() {
    let (mut config, bare) = nic();
    assert_eq!(config.kind(), None);
    let changes = config.write(0xc2, &0xc000u16.to_le_bytes(), &bare);
    assert!(changes.messages && !changes.places);
    assert_eq!((config.kind(), config.is_masked()), (Some(Kind::MsiX), true));
    config.write(0xc2, &0u16.to_le_bytes(), &bare);
    config.write(0xa4, &0xfee0_0000u32.to_le_bytes(), &bare);
    config.write(0xac, &9u16.to_le_bytes(), &bare);
    config.write(0xa2, &1u16.to_le_bytes(), &bare);
    assert_eq!((config.kind(), config.message()), (Some(Kind::Msi), Some((0xfee0_0000, 9, 1))));
    assert_eq!(bare.config(0xc2, 2) & 0xc000, 0);
    assert_eq!(bare.config(0xa2, 2) & 1, 0);
}

#[test]
fn a_successor_sees_what_was_written() {
    let (mut config, bare) = nic();
    config.write(BAR0, &0xf800_0000u32.to_le_bytes(), &bare);
    config.write(register::COMMAND, &[6, 4], &bare);
    config.write(0xc2, &0x8000u16.to_le_bytes(), &bare);
    let saved = config.save();
    let mut next = Config::of(&bare).unwrap();
    next.restore(saved.iter().copied());
    assert_eq!(next.shadow, config.shadow);
    // Lies of a damaged ledger: nothing changes that a guest could not have changed.
    next.restore([(0, 0xff), (0x41, 0), (9999, 1)]);
    assert_eq!(next.shadow, next.blank);
}

#[test]
fn functions_that_cannot_be_passed_through_are_told_apart() {
    let mut model = crate::mock::Model::nic();
    model.is_resettable = false;
    assert!(matches!(Config::of(&Bare::new(model)), Err(Unfit::NotResettable)));
    let model = crate::mock::Model { msi: 0, msix: None, ..crate::mock::Model::nic() };
    assert!(matches!(Config::of(&Bare::new(model)), Err(Unfit::LineOnly)));
    let bridge = Bare::new(crate::mock::Model::nic());
    bridge.set(0xe, &[0x81]);
    assert!(matches!(Config::of(&bridge), Err(Unfit::NoEndpoint(1))));
    let gone = Bare::new(crate::mock::Model::nic());
    gone.set(0, &[0xff; 4]);
    assert!(matches!(Config::of(&gone), Err(Unfit::Absent)));
}

#[test]
fn a_ring_of_capabilities_ends() {
    let bare = Bare::new(crate::mock::Model::nic());
    bare.set(0xc1, &[0x40]);
    bare.set(0x142, &[1, 0x14]);
    let config = Config::of(&bare).unwrap();
    assert_eq!(capabilities(&config, &bare).len(), 4);
    bare.set(0xc4, &[0xff; 4]);
    assert!(Config::of(&bare).unwrap().msix().is_none(), "a table beyond the registers is none");
}

proptest! {
    /// Whatever a function's configuration space says, and whatever a guest does to it.
    #[test]
    fn nothing_is_too_strange(
        found in proptest::collection::vec(any::<u8>(), 4096),
        sane: bool,
        writes in proptest::collection::vec((0u16..5000, proptest::collection::vec(any::<u8>(), 0..10)), 0..40),
    ) {
        let bare = Bare::new(crate::mock::Model::nic());
        bare.set(0, &found);
        if sane {
            bare.set(0xe, &[0]);
            bare.set(6, &[0x10, 0]);
        }
        let Ok(mut config) = Config::of(&bare) else { return Ok(()) };
        for (at, bytes) in &writes {
            config.write(*at, bytes, &bare);
            let mut back = vec![0; bytes.len()];
            config.read(*at, &mut back, &bare);
            (0..6).for_each(|bar| _ = config.place(bar));
            let _ = (config.kind(), config.message());
        }
        let mut next = Config::of(&bare).unwrap_or_else(|_| config.clone());
        next.restore(config.save());
    }
}
