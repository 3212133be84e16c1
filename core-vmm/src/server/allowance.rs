//! How often a device may change what the guest sees.
//!
//! With every memory slot that goes, KVM forgets all page tables of the VM, and its processors fault their memory in anew: a process that an attacker has
//! taken over must not do that to the guest all day long. With every interrupt that comes or goes, KVM replaces the table of all of them, and the core
//! waits until no processor looks at the old one.

use std::time::{Duration, Instant};

use ipc::message::MAX_INTERRUPTS;

/// Mappings in a row. A guest's driver asks for one when it begins, and another guest after a kexec for the next: this is many times what is needed.
const BURST: u32 = 64;
/// For each of these one more: 32 a second, and a guest that loads its driver anew again and again is slower than that.
const PAUSE: Duration = Duration::from_millis(1000 / 32);
/// Interrupts in a row. A driver may take all that a device has, give them back and take them again with others' processors.
const INTERRUPT_BURST: u32 = 4 * MAX_INTERRUPTS as u32;
/// For each of these one more: a guest that moves its interrupts about does so once in some seconds.
const INTERRUPT_PAUSE: Duration = Duration::from_millis(1000 / 128);

/// What is left to a device. It belongs to the device and not to its process: one that dies does not begin anew.
#[derive(Debug)]
pub(super) struct Allowance {
    burst: u32,
    pause: Duration,
    left: u32,
    /// Until when what time brings is in `left`.
    counted: Instant,
}

impl Allowance {
    /// Of mappings.
    pub fn of_mappings(now: Instant) -> Self {
        Self::new(BURST, PAUSE, now)
    }

    /// Of interrupts.
    pub fn of_interrupts(now: Instant) -> Self {
        Self::new(INTERRUPT_BURST, INTERRUPT_PAUSE, now)
    }

    fn new(burst: u32, pause: Duration, now: Instant) -> Self {
        Self { burst, pause, left: burst, counted: now }
    }

    /// Takes one; false: there is none.
    #[must_use = "without it nothing may be changed"]
    pub fn take(&mut self, now: Instant) -> bool {
        let pauses = now.saturating_duration_since(self.counted).as_millis() / self.pause.as_millis();
        match u32::try_from(pauses) {
            Ok(earned) if earned < self.burst - self.left => {
                self.left += earned;
                self.counted += self.pause * earned;
            }
            // What does not fit in is not saved.
            _ => *self = Self::new(self.burst, self.pause, now),
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut allowance = Allowance::of_mappings(start);
        let mut taken = |at| std::iter::repeat_with(|| allowance.take(at)).take_while(|taken| *taken).count();
        assert_eq!(taken(start), BURST as usize);
        assert_eq!(taken(start + PAUSE - Duration::from_millis(1)), 0);
        assert_eq!(taken(start + PAUSE), 1);
        // Who asks all the time gets as much as who waits.
        let asked = (0..1000).map(|n| taken(start + PAUSE + PAUSE * n / 100));
        assert_eq!(asked.sum::<usize>(), 9);
        assert_eq!(taken(start + PAUSE * 14), 4);
        assert_eq!(taken(start + PAUSE * 10_000), BURST as usize, "and no more, however long it was quiet");
        assert_eq!(taken(start), 0, "a clock that goes back brings nothing");
    }
}
