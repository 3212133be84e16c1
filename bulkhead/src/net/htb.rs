//! A class of the kernel's hierarchical token bucket (`sch_htb`), as bytes: `linux/pkt_sched.h`.

use super::netlink::{Payload, attribute, number};
use super::rate::Rate;

const TCA_HTB_PARMS: u16 = 1;
/// Nanoseconds of the kernel's tick (`PSCHED_SHIFT`).
const TICK: u64 = 64;

/// `struct tc_htb_opt`: a class.
pub(super) fn class(rate: Rate, ceiling: Rate, burst: u64) -> Payload {
    let spec = |rate: Rate| {
        // cell_log, linklayer (Ethernet: the kernel wants no tables then), overhead, cell_align, mpu, rate
        let mut spec = vec![0, 1, 0, 0, 0, 0, 0, 0];
        spec.extend(u32::try_from(rate.0).unwrap_or(u32::MAX).to_ne_bytes());
        spec
    };
    let ticks = |rate: Rate| {
        let ticks = u128::from(burst) * 1_000_000_000 / u128::from(rate.0.max(1)) / u128::from(TICK);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    };
    let mut bytes = [spec(rate), spec(ceiling)].concat();
    // What a class sends before it is another one's turn: by the rate, within what the kernel does not complain about.
    let quantum = u32::try_from((rate.0 / 10).clamp(1514, 200_000)).unwrap_or(1514);
    for word in [ticks(rate), ticks(ceiling), quantum, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    Payload::default().add(TCA_HTB_PARMS, &bytes)
}

/// Rate, ceiling and burst of a class.
pub(super) fn read(options: &[u8]) -> Option<(Rate, Rate, u64)> {
    let parameters = attribute(options, TCA_HTB_PARMS)?;
    let word = |at: usize| Some(u64::from(number(parameters.get(at..)?)?));
    let (rate, ceiling, ticks) = (word(8)?, word(20)?, word(28)?);
    let burst = u128::from(ticks) * u128::from(TICK) * u128::from(ceiling) / 1_000_000_000;
    Some((Rate(rate), Rate(ceiling), u64::try_from(burst).ok()?))
}

/// The kernel keeps bursts as times: they come back rounded.
pub(super) fn near(a: Option<u64>, b: Option<u64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) <= b / 100 + 1,
        (a, b) => a.is_none() && b.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_as_it_is_written() {
        for (rate, burst) in [(12_500_000, 128 * 1024), (1_250_000_000, 12_500_000), (1000, 1600)] {
            let written = class(Rate(rate), Rate(rate), burst);
            assert_eq!(written.bytes().len(), 4 + 44, "struct tc_htb_opt");
            let (read, ceiling, found) = read(written.bytes()).unwrap();
            assert_eq!((read, ceiling), (Rate(rate), Rate(rate)));
            assert!(near(Some(found), Some(burst)), "{found} for {burst}");
        }
    }
}
