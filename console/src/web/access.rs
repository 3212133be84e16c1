//! Who may come in: tokens that are good for once and a minute, and cookies that outlive this process.
//!
//! A token is kept here, and goes with the process. A cookie is kept nowhere: it says for which session and until when it is good, and proves
//! that by a MAC with a secret that the supervisor keeps. A browser sends a cookie to every port of 127.0.0.1, and so perhaps to
//! somebody else's server; so each session has a path of its own, that nobody else can know, and its cookie is for that path only.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ring::hmac;

/// How long a token is good for: to start a browser.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How long a cookie is: a working day.
const COOKIE_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Tokens at a time. Whoever asks for more has forgotten about the first ones.
const MOST_TOKENS: usize = 64;
/// Bytes of randomness in a token, and in the name of a session.
const RANDOM: usize = 16;
/// Characters of that.
const NAME: usize = 2 * RANDOM;
/// Bytes of the secret.
const SECRET: usize = 32;

/// What a cookie is called.
pub const COOKIE: &str = "bulkhead";

/// Decides who may come in.
#[derive(Debug)]
pub struct Access {
    key: hmac::Key,
    /// Each with the time at which it ends.
    tokens: HashMap<String, Instant>,
}

/// Somebody who has just been let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The first part of the paths of everything that is his.
    pub name: String,
    /// The value of his cookie.
    pub cookie: String,
    /// For how many seconds he keeps it.
    pub seconds: u64,
}

impl Access {
    /// With the secret in that file; without one, cookies end with this process.
    pub fn new(secret: Option<OwnedFd>) -> io::Result<Self> {
        let mut bytes = [0; SECRET];
        match secret {
            // Others read the same open file: its position is nobody's.
            Some(file) => File::from(file).read_exact_at(&mut bytes, 0)?,
            None => random(&mut bytes)?,
        }
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), tokens: HashMap::new() })
    }

    /// A new token.
    pub fn invite(&mut self, now: Instant) -> io::Result<String> {
        let token = name()?;
        self.tokens.retain(|_, end| *end > now);
        if self.tokens.len() >= MOST_TOKENS
            && let Some(oldest) =
                self.tokens.iter().min_by_key(|(_, end)| **end).map(|(token, _)| token.clone())
        {
            self.tokens.remove(&oldest);
        }
        self.tokens.insert(token.clone(), now + TOKEN_LIFE);
        Ok(token)
    }

    /// A session for whoever has that token, which is worth nothing afterwards. `None`: it was worth nothing before.
    pub fn enter(&mut self, token: &str, now: Instant) -> Option<Session> {
        self.tokens.remove(token).filter(|end| *end > now)?;
        let name = name().ok()?;
        let end = since_epoch().checked_add(COOKIE_LIFE.as_secs())?;
        let cookie = format!("{end}.{}", hex(hmac::sign(&self.key, &text(&name, end)).as_ref()));
        Some(Session { name, cookie, seconds: COOKIE_LIFE.as_secs() })
    }

    /// Whether the cookie with that value belongs to the session.
    pub fn admits(&self, session: &str, cookie: &str) -> bool {
        let Some((end, mac)) = cookie.split_once('.') else { return false };
        let (Ok(end), Some(mac)) = (end.parse::<u64>(), unhex(mac)) else { return false };
        // In constant time.
        is_name(session) && hmac::verify(&self.key, &text(session, end), &mac).is_ok() && since_epoch() < end
    }
}

/// Whether that could be the name of a session.
pub fn is_name(text: &str) -> bool {
    text.len() == NAME && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a MAC is made of.
fn text(session: &str, end: u64) -> Vec<u8> {
    format!("bulkhead web session {session} until {end}").into_bytes()
}

fn since_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
}

fn name() -> io::Result<String> {
    let mut bytes = [0; RANDOM];
    random(&mut bytes)?;
    Ok(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Infallible on a string.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    // A MAC's length; others need not be looked at.
    if text.len() != 2 * SECRET || !text.is_ascii() {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn secret(byte: u8) -> Option<OwnedFd> {
        let made = nix::sys::memfd::memfd_create(c"secret", nix::sys::memfd::MFdFlags::empty());
        let mut file = File::from(made.unwrap());
        file.write_all(&[byte; SECRET]).unwrap();
        Some(file.into())
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let now = Instant::now();
        let mut access = Access::new(None).unwrap();
        let token = access.invite(now).unwrap();
        assert!(is_name(&token));
        assert!(access.enter("", now).is_none() && access.enter(&"0".repeat(NAME), now).is_none());
        assert!(access.enter(&token, now).is_some());
        assert!(access.enter(&token, now).is_none(), "a second time");
        let late = access.invite(now).unwrap();
        assert!(access.enter(&late, now + TOKEN_LIFE).is_none());
    }

    #[test]
    fn tokens_are_bounded_and_the_oldest_one_goes() {
        let now = Instant::now();
        let mut access = Access::new(None).unwrap();
        let first = access.invite(now).unwrap();
        let later = now + Duration::from_millis(1);
        let others: Vec<String> = (0..MOST_TOKENS).map(|_| access.invite(later).unwrap()).collect();
        assert_eq!(access.tokens.len(), MOST_TOKENS);
        assert!(access.enter(&first, later).is_none());
        assert!(others.iter().all(|token| access.enter(token, later).is_some()));
    }

    #[test]
    fn a_cookie_outlives_the_process_and_is_for_one_session_of_one_vm() {
        let now = Instant::now();
        let mut access = Access::new(secret(1)).unwrap();
        let token = access.invite(now).unwrap();
        let session = access.enter(&token, now).unwrap();
        assert!(access.admits(&session.name, &session.cookie));
        let successor = Access::new(secret(1)).unwrap();
        assert!(successor.admits(&session.name, &session.cookie));
        assert!(!Access::new(secret(2)).unwrap().admits(&session.name, &session.cookie), "another VM's");
        assert!(!successor.admits(&name().unwrap(), &session.cookie), "another session's");
    }

    #[test]
    fn forged_and_old_cookies_are_refused() {
        let access = Access::new(secret(1)).unwrap();
        let session = name().unwrap();
        let of = |end: u64| format!("{end}.{}", hex(hmac::sign(&access.key, &text(&session, end)).as_ref()));
        assert!(access.admits(&session, &of(u64::MAX)));
        assert!(!access.admits(&session, &of(since_epoch())), "it is over");
        let good = of(u64::MAX);
        let mac = good.split_once('.').unwrap().1;
        for forged in [
            "",
            ".",
            "1",
            "1.",
            &format!("{}.{mac}", u64::MAX - 1),
            &format!("x.{mac}"),
            &good[..good.len() - 1],
            &format!("{}.{}", u64::MAX, "é".repeat(SECRET)),
            &format!("{}.{}", u64::MAX, "0".repeat(2 * SECRET)),
            &format!("+{good}"),
        ] {
            let is_plus = forged.starts_with('+');
            assert!(is_plus || !access.admits(&session, forged), "{forged}");
        }
        assert!(!access.admits("", &good) && !access.admits("../..", &good));
    }
}
