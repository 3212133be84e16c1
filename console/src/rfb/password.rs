//! VNC's authentication (RFC 6143, 7.2.2): the viewer proves that it knows a password of eight characters. It keeps honest
//! people honest on a loopback interface and no more; over a network it belongs inside TLS.

use std::time::{Duration, Instant};

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

/// Bytes of a challenge and of its answer.
pub const CHALLENGE: usize = 16;

/// Wrong passwords in a row after which nobody is asked for a while. Eight characters stand up to so few for years.
const ATTEMPTS: u32 = 5;
/// For how long.
const PAUSE: Duration = Duration::from_secs(10);

/// A password: its first eight bytes, which is all that the protocol knows of.
#[derive(Clone)]
pub struct Password([u8; 8]);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

impl Password {
    /// The first line of a password file; `None`: it is empty, and nobody may be let in by it.
    #[must_use = "without a password everybody would come in"]
    pub fn of_file(text: &[u8]) -> Option<Password> {
        let line = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        let mut key = [0; 8];
        let len = line.len().min(key.len());
        key[..len].copy_from_slice(&line[..len]);
        (len > 0).then_some(Password(key))
    }

    /// What a viewer answers that knows it.
    pub fn answer(&self, challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
        // The first VNC took the bits of each byte of the key in the wrong order, and so has everybody since.
        let cipher = Des::new(&self.0.map(u8::reverse_bits).into());
        let mut answer = *challenge;
        for block in answer.as_chunks_mut::<8>().0 {
            let mut sealed = (*block).into();
            cipher.encrypt_block(&mut sealed);
            *block = sealed.into();
        }
        answer
    }

    /// Whether this is the right answer. Takes as long for a wrong one.
    pub fn accepts(&self, challenge: &[u8; CHALLENGE], answer: &[u8; CHALLENGE]) -> bool {
        self.answer(challenge).iter().zip(answer).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

/// Slows down whoever tries passwords, on however many connections.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    failures: u32,
    until: Option<Instant>,
}

impl Guard {
    /// Whether anybody may try now.
    pub fn is_open(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// Somebody has tried.
    pub fn note(&mut self, right: bool, now: Instant) {
        self.failures = if right { 0 } else { self.failures.saturating_add(1) };
        if self.failures >= ATTEMPTS {
            self.failures = 0;
            self.until = now.checked_add(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_des_with_the_keys_bits_turned_around() {
        // FIPS 81's example: key 0123456789abcdef, "Now is t" and "he time " in ECB mode.
        let key = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef_u8].map(u8::reverse_bits);
        let answer = Password(key).answer(b"Now is the time ");
        let wanted = [0x3f, 0xa4, 0x0e, 0x8a, 0x98, 0x4d, 0x48, 0x15];
        assert_eq!(answer[..8], wanted);
        assert_eq!(answer[8..], [0x6a, 0x27, 0x17, 0x87, 0xab, 0x88, 0x83, 0xf9]);
    }

    #[test]
    fn eight_characters_of_the_first_line_count() {
        let challenge = [7; CHALLENGE];
        let password = Password::of_file(b"verysecret\nand more").unwrap();
        let same = Password::of_file(b"verysecr").unwrap();
        assert!(password.accepts(&challenge, &same.answer(&challenge)));
        let other = Password::of_file(b"verysec").unwrap();
        assert!(!password.accepts(&challenge, &other.answer(&challenge)));
        assert!(Password::of_file(b"").is_none());
        assert!(Password::of_file(b"\nlate").is_none());
        assert!(Password::of_file(b"\rlate").is_none());
    }

    #[test]
    fn too_many_wrong_ones_close_the_door_for_a_while() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for _ in 0..ATTEMPTS - 1 {
            guard.note(false, now);
        }
        guard.note(true, now);
        assert!(guard.is_open(now));
        for _ in 0..ATTEMPTS {
            assert!(guard.is_open(now));
            guard.note(false, now);
        }
        assert!(!guard.is_open(now) && guard.is_open(now + PAUSE));
    }
}
